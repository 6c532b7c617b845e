"""Loading traces: every source, checked columns, clear refusals."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from reasoning_palette.trainers.traces import load_traces

ROWS = [
    {"question": "q0", "reasoning": "r0", "answer": "a0", "domain": "math", "extra": [1]},
    {"question": "q1", "reasoning": None, "answer": "a1", "domain": "code", "extra": []},
]
TRACES = [{key: value for key, value in row.items() if key != "extra"} for row in ROWS]
REAL_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_json_lines(path, rows=ROWS):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_parquet(path):
    Dataset.from_list(ROWS).to_parquet(path)
    return path


def write_folder(path):
    Dataset.from_list(ROWS).save_to_disk(path)
    return path


def endless_rows():
    while True:
        yield from ROWS


class TestSources:
    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        "source",
        [
            lambda folder: write_json_lines(folder / "traces.jsonl"),
            lambda folder: str(write_json_lines(folder / "traces.jsonl.gz")),
            lambda folder: write_parquet(folder / "traces.parquet"),
            lambda folder: write_folder(folder / "traces"),
            lambda folder: Dataset.from_list(ROWS),
            lambda folder: Dataset.from_list(ROWS).to_iterable_dataset(),
            lambda folder: ROWS,
        ],
        ids=["jsonl", "gzip", "parquet", "folder", "dataset", "iterable", "rows"],
    )
    def test_each_gives_the_trace_columns(self, tmp_path, source, streaming):
        source = source(tmp_path)
        traces = load_traces(source, streaming=streaming)
        assert list(traces) == TRACES
        assert isinstance(traces, IterableDataset if streaming or isinstance(source, IterableDataset) else Dataset)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_list_of_sources(self, tmp_path, streaming):
        path = write_json_lines(tmp_path / "traces.jsonl.gz")
        other = [{"prompt": "p", "completion": "c"}]
        traces = list(load_traces([path, Dataset.from_list(ROWS), other], streaming=streaming))
        assert [row.get("question") for row in traces] == ["q0", "q1", "q0", "q1", None]
        assert traces[-1]["completion"] == "c"

    def test_nothing_is_read_ahead_of_an_endless_stream(self):
        traces = load_traces(IterableDataset.from_generator(endless_rows))
        assert [row["answer"] for row in traces.take(3)] == ["a0", "a1", "a0"]

    def test_rows_of_different_columns(self):
        rows = [{"question": "q", "answer": "a"}, {"question": "q", "reasoning": "r", "answer": "a"}]
        assert [row["reasoning"] for row in load_traces(rows)] == [None, "r"]

    def test_splits(self, tmp_path):
        path = write_json_lines(tmp_path / "traces.jsonl")
        assert len(load_traces(path, split="train[:1]")) == 1
        DatasetDict(test=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
        assert len(load_traces(tmp_path / "splits", split="test")) == 2
        with pytest.raises(ValueError, match=r"`split` must be one of \['test'\] for .*, got 'train'"):
            load_traces(tmp_path / "splits")

    @pytest.mark.parametrize(("source", "expected"), [("org/set", None), ("org/set:main", "main")])
    def test_hub_ids(self, monkeypatch, source, expected):
        def load_dataset(hub_id, configuration, split, streaming):
            assert (hub_id, configuration, split, streaming) == ("org/set", expected, "test", True)
            return Dataset.from_list(ROWS).to_iterable_dataset()

        monkeypatch.setattr("reasoning_palette.trainers.traces.load_dataset", load_dataset)
        assert list(load_traces(source, split="test", streaming=True)) == TRACES

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("rows", [ROWS, [{"messages": [{"role": "user", "content": "q"}]}]])
    def test_a_domain_for_all(self, rows, streaming):
        traces = load_traces(rows, domain="qa", streaming=streaming)
        assert [row["domain"] for row in traces] == ["qa"] * len(rows)

    @pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real traces are not beside the checkout")
    def test_real_traces(self):
        names = ["gsm8k_test_a", "mbpp_a", "csqa_cose_dev_a"]
        traces = load_traces([REAL_DATA / f"{name}.jsonl.gz" for name in names])
        assert {row["domain"] for row in traces} == {"math", "code", "qa"}
        assert all(row["question"] and row["answer"] for row in traces)


class TestRefusals:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_wrong_columns(self, streaming):
        with pytest.raises(
            ValueError,
            match=r"found the columns \['query', 'response'\], but traces have `question` and `answer` .*"
            r"`prompt` and `completion`, or `messages`\. Rename",
        ):
            load_traces([{"query": "q", "response": "a"}], streaming=streaming)

    @pytest.mark.parametrize(
        "source",
        [[], Dataset.from_dict({"question": [], "answer": []}), IterableDataset.from_generator(lambda: iter(()))],
        ids=["rows", "dataset", "iterable"],
    )
    def test_empty(self, source):
        with pytest.raises(ValueError, match=r"There are no traces in .*: the dataset is empty"):
            load_traces(source)

    def test_missing_file(self):
        with pytest.raises(FileNotFoundError, match=r"`source` is 'nowhere.jsonl.gz', but there is no such file"):
            load_traces("nowhere.jsonl.gz")

    def test_other_file(self, tmp_path):
        (tmp_path / "traces.csv").write_text("question,answer\n")
        with pytest.raises(ValueError, match=r"a file that ends in '.csv'; traces are read from .jsonl, .*.parquet"):
            load_traces(tmp_path / "traces.csv")

    def test_dataset_dict(self):
        with pytest.raises(TypeError, match=r"`source` has the splits \['train'\]; pass one of them"):
            load_traces(DatasetDict(train=Dataset.from_list(ROWS)))

    @pytest.mark.parametrize("source", [None, 3, {"question": "q", "answer": "a"}])
    def test_other_types(self, source):
        with pytest.raises(TypeError, match="`source` must be a path, a Hub id, a dataset, a list of rows"):
            load_traces(source)

    def test_split_of_what_is_loaded(self):
        with pytest.raises(ValueError, match="`split` is 'test', but the list of rows is already loaded"):
            load_traces(ROWS, split="test")
