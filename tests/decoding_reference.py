"""What decoding has to give, by hand: loops without a cache on a stock base, with spliced `inputs_embeds`.

Nothing here calls `generate`, and a row is never padded before it is run.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import GenerationMixin, LogitsProcessorList

# Whether beam sampling ranks its draws by score; before transformers 5.24 it left them in the order of the draw.
SORTS_DRAWS = ".sort(" in inspect.getsource(GenerationMixin._get_top_k_continuations)
Processors = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Reference:
    """
    Decodes rows of a stock base behind spliced vectors.

    Args:
        base: A stock causal language model.
        prefixes (`torch.Tensor` of shape `(N, L, H)`, *optional*): Decoded latents; `None` for no prefix.
        after (list of `int`, *optional*): How many tokens of each row stand in front of its prefix.
        pad (`int`): Fills rows that end early, and the left of short prompts.
    """

    base: torch.nn.Module
    prefixes: torch.Tensor | None = None
    after: Sequence[int] = ()
    pad: int = 0
    starts: list[int] = field(default_factory=list)  # left pads of each row, set by `prompts`

    @torch.no_grad()
    def logits(self, row: int, tokens: torch.Tensor) -> torch.Tensor:
        """Logits `(S + L, V)` of one unpadded row."""
        embeds = self.base.get_input_embeddings()(tokens[None])
        if self.prefixes is not None:
            at = self.after[row] if self.after else 0
            embeds = torch.cat([embeds[:, :at], self.prefixes[row][None].to(embeds), embeds[:, at:]], dim=1)
        return self.base(inputs_embeds=embeds, use_cache=False).logits[0]

    def next_logits(self, ids: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Float logits `(N, V)` behind left-padded ids `(N, S)`; `rows` names the prompts they belong to."""
        rows = range(len(ids)) if rows is None else rows
        last = [self.logits(row, ids[i, self.starts[row] :])[-1] for i, row in enumerate(rows)]
        return torch.stack(last).float()

    def prompts(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.starts = [int(row.argmax()) for row in mask]
        return ids

    def decode(
        self,
        ids: torch.Tensor,
        processors: Processors = LogitsProcessorList(),  # noqa: B008
        max_new_tokens: int = 8,
        seed: int | None = None,
        eos: Sequence[int] = (),
        stop: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Greedy, or with a `seed` multinomial. Returns ids, processed scores and raw logits of each step."""
        if seed is not None:
            torch.manual_seed(seed)
        going = torch.ones(len(ids), dtype=torch.bool)
        scores, raw = [], []
        for _ in range(max_new_tokens):
            logits = self.next_logits(ids)
            processed = processors(ids, logits.clone())
            scores.append(processed)
            raw.append(logits)
            tokens = processed.argmax(-1) if seed is None else torch.multinomial(processed.softmax(-1), 1)[:, 0]
            if eos:  # transformers pads rows that have ended only where there is an EOS token
                tokens = torch.where(going, tokens, self.pad)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            going = going & ~torch.isin(tokens, torch.tensor(list(eos), dtype=torch.int64))
            if stop is not None:
                going = going & ~stop(ids)
            if not going.any():
                break
        return ids, scores, raw

    def beam_search(
        self,
        ids: torch.Tensor,
        num_beams: int,
        processors: Processors = LogitsProcessorList(),  # noqa: B008
        max_new_tokens: int = 8,
        num_return_sequences: int = 1,
        eos: Sequence[int] = (),
        length_penalty: float = 1.0,
        early_stopping: bool = False,
        seed: int | None = None,
    ) -> list[list[tuple[float, list[int]]]]:
        """
        Textbook beam search of each prompt by itself: finished hypotheses are scored by log-probability / length **
        `length_penalty`; a search ends when no running beam can beat the worst of `num_beams` finished ones.

        Returns:
            For each prompt, `num_return_sequences` pairs of score and completion, best first.
        """
        if seed is not None:
            torch.manual_seed(seed)
        found = []
        for row in range(len(ids)):
            prompt = ids[row].tolist()
            # only one of the equal beams counts at the start
            running: list[tuple[float, list[int]]] = [(0.0, []), *[(-1e9, [])] * (num_beams - 1)]
            finished: list[tuple[float, list[int]]] = []
            for length in range(1, max_new_tokens + 1):
                rows = torch.tensor([prompt + tokens for _, tokens in running])
                log_probs = self.next_logits(rows, [row] * len(rows)).log_softmax(-1)
                log_probs = processors(rows, log_probs) + torch.tensor([score for score, _ in running])[:, None]
                flat = log_probs.flatten()
                keep = max(2, 1 + len(eos)) * num_beams
                if seed is None:
                    order = flat.topk(keep).indices
                else:
                    order = torch.multinomial(flat.softmax(-1), keep)
                    if SORTS_DRAWS:
                        order = order[flat[order].argsort(descending=True)]
                vocab = log_probs.shape[1]
                following = [(float(flat[i]), running[i // vocab][1] + [int(i) % vocab]) for i in order]
                running = []
                for rank, (score, tokens) in enumerate(following):
                    if tokens[-1] in eos or length == max_new_tokens:
                        if rank < num_beams:
                            finished.append((score / length**length_penalty, tokens))
                    else:
                        running.append((score, tokens))
                running = sorted(running, key=lambda one: -one[0])[:num_beams]
                finished = sorted(finished, key=lambda one: -one[0])[:num_beams]
                if not running or len(finished) < num_beams:
                    continue
                if early_stopping or running[0][0] / length**length_penalty <= finished[-1][0]:
                    break
            found.append(finished[:num_return_sequences])
        return found


def speculative_sampling(
    target: Reference, draft: Reference, ids: torch.Tensor, num_drafts: int, max_new_tokens: int, seed: int
) -> torch.Tensor:
    """
    Algorithm 1 of Leviathan et al., "Fast inference from transformers via speculative decoding", of one row, with
    transformers' order of random numbers: one draw per drafted token, all acceptances, one draw for what follows.
    """
    torch.manual_seed(seed)
    end = ids.shape[1] + max_new_tokens
    while ids.shape[1] < end:
        drafted, proposals = ids, []
        for _ in range(min(num_drafts, end - ids.shape[1] - 1)):
            proposals.append(draft.next_logits(drafted).softmax(-1)[0])
            drafted = torch.cat([drafted, torch.multinomial(proposals[-1], 1)[None]], dim=1)
        count = len(proposals)
        wanted = [target.next_logits(drafted[:, : ids.shape[1] + i]).softmax(-1)[0] for i in range(count + 1)]
        tokens = drafted[0, ids.shape[1] :].tolist()
        if not count:  # transformers draws from the target alone when there is room for one token only
            tokens = [int(torch.multinomial(wanted[0], 1))]
        else:
            ratios = torch.stack([wanted[i][t] / proposals[i][t] for i, t in enumerate(tokens)])
            accepted = int(((torch.rand(1, count)[0] <= ratios).long().cumprod(0)).sum())
            following = wanted[accepted]
            if accepted < count:
                following = (following - proposals[accepted]).clamp(min=0)
                following = following / following.sum()
            tokens = [*tokens[:accepted], int(torch.multinomial(following, 1))]
        ids = torch.cat([ids, torch.tensor([tokens])], dim=1)
    return ids
