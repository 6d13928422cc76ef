"""Responses drawn from (1 - alpha) q + alpha p, with the log-probabilities of both models taken on the way.

Drawing from the mixture equals tossing a coin for each token: heads, with probability alpha, the
teacher p draws it, tails the student q. The coins of a call are tossed before it starts,
one for each response position and the same for all its rows, so that the student decodes alone until
the next heads and the teacher then takes everything since its last call as one chunk. Each row has
exactly the law of the mixture; rows of one call share the positions (not the draws) of the teacher's
tokens. What the teacher did not see by the end is one closing chunk, or, where it was never called,
one pass without cache. A response's last token is fed to neither model: nothing is read from it.

What is random is drawn up front (:class:`Noise`): one number for each row and position, which hangs on
the seed and the row's own number, and one coin for each position, which hangs on the seed alone. A row's
response therefore does not depend on which rows are sampled with it, on this rank or another, but for
how a matrix product rounds.

Axes: B rows of one decoding batch, T response positions, K columns of a chunk, D hidden width,
V vocabulary, N tokens joined.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from minillm_core.rollout.decoder import Decoder
from minillm_core.rollout.draw import draw, logp_from_hidden, logp_of
from minillm_core.rollout.lazy_teacher import LazyTeacher
from minillm_core.rollout.packing import packed_index, padded

_COINS = 2**63
"""Number of the stream of coins, beyond those of all rows."""

SYNC_EVERY = 8
"""Steps between two looks at which rows have ended, where a look waits for the device."""


PARTS = ("prefill", "decode", "teacher", "score")
"""Of the time: the student's prompts, its steps, the teacher's calls that decide tokens, its scoring of the rest."""


@dataclass
class RolloutCounters:
    """Work done by one call. Tokens are positions computed by a model, padding included where it was computed."""

    teacher_tokens: int = 0
    student_tokens: int = 0
    student_decode_steps: int = 0
    teacher_calls: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time within to ``seconds[part]`` (time on the host: a device may lag behind)."""
        begin = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - begin


@dataclass(frozen=True)
class Noise:
    """The random numbers of one call, uniform in [0, 1), float64 on the CPU."""

    uniform_RT: torch.Tensor
    """What draws the token of each row (R) and response position (T)."""
    coin_T: torch.Tensor
    """Heads, the teacher's turn, where it is below alpha."""

    @classmethod
    def of_rows(cls, seed: int, rows: Sequence[int], positions: int) -> Noise:
        """Noise for the rows with these numbers; every rank gets the same for the same number.

        ``seed`` and the numbers lie in [0, 2**63). Counter-based generators (Philox) make a stream
        of its own for each row without drawing those before it.
        """
        drawn = [np.random.Generator(np.random.Philox(key=[seed, row])).random(positions) for row in rows]
        coins = np.random.Generator(np.random.Philox(key=[seed, _COINS])).random(positions)
        uniform_RT = torch.from_numpy(np.stack(drawn)) if drawn else torch.empty(0, positions, dtype=torch.float64)
        return cls(uniform_RT, torch.from_numpy(coins))


@dataclass
class Rollouts:
    """Sampled responses, one entry a row, in the order of the prompts."""

    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    """The first eos is an action that counts and is included; nothing follows it."""
    truncated: list[bool]
    """Whether the response ended without eos."""
    student_logp: list[torch.Tensor]
    """(T_i,) float32: log q of the sampled tokens under the distribution sampled from (temperature applied,
    shared vocabulary)."""
    teacher_logp: list[torch.Tensor] | None
    """(T_i,) float32: log p likewise, nan where it was not asked for; None without a teacher."""
    teacher_hidden: list[torch.Tensor] | None
    """(T_i, D) final hidden states that predict each response token, in the teacher's number format."""
    counters: RolloutCounters


@dataclass(frozen=True)
class _Settings:
    max_new_tokens: int
    temperature: float
    eos: torch.Tensor
    vocab: int
    greedy: bool
    keep_hidden: bool
    sync_every: int
    teacher_logp_every: int


@torch.no_grad()
def sample(
    student: Decoder,
    teacher: Decoder | None,
    prompts: list[list[int]],
    *,
    alpha: float,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Sequence[int],
    vocab: int,
    batch_rows: int,
    noise: Noise,
    keep_teacher_hidden: bool,
    greedy: bool = False,
    sync_every: int | None = None,
    teacher_logp_every: int = 1,
) -> Rollouts:
    """Sample one response of at most ``max_new_tokens`` tokens for each prompt.

    ``vocab`` is the number of tokens the models share: both softmaxes are over the first ``vocab``
    logits. At most ``batch_rows`` rows are decoded together, rows of similar prompt length in one
    batch. Without a teacher the responses come from ``student`` alone, which may be any model. With
    ``alpha`` 0 the teacher only scores. ``greedy`` takes the most probable token instead of a draw.
    ``sync_every``: steps between two looks at which rows have ended (each look makes the host wait
    for the device); every step on a CPU, else ``SYNC_EVERY``, when left out. ``teacher_logp_every``: log p is taken at
    each so many-th position, from the first on, and where the teacher draws; each costs the teacher's head.

    Raises ValueError where an argument is out of range, a prompt is empty, or prompt and response
    together may be longer than a model's context.
    """
    _check(student, teacher, prompts, alpha, max_new_tokens, temperature, vocab, greedy)
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be at least 1, not {batch_rows}")
    if noise.uniform_RT.shape != (len(prompts), max_new_tokens):
        raise ValueError(
            f"noise of shape {tuple(noise.uniform_RT.shape)} for {len(prompts)} prompts and {max_new_tokens} tokens"
        )
    counters = RolloutCounters()
    rows = len(prompts)
    result = Rollouts(prompts, [[]] * rows, [False] * rows, [], None, None, counters)
    no_values = [torch.empty(0)] * rows
    result.student_logp = list(no_values)
    if teacher is not None:
        result.teacher_logp = list(no_values)
        result.teacher_hidden = list(no_values) if keep_teacher_hidden else None

    device = student.device
    uniform_RT = noise.uniform_RT.to(device)
    coins = [False] * max_new_tokens
    if teacher is not None and alpha > 0:
        coins = (noise.coin_T < alpha).tolist()
    settings = _Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos=torch.tensor(sorted(set(eos_ids)), dtype=torch.long, device=device),
        vocab=vocab,
        greedy=greedy,
        keep_hidden=keep_teacher_hidden,
        sync_every=sync_every or (1 if device.type == "cpu" else SYNC_EVERY),
        teacher_logp_every=teacher_logp_every,
    )
    for members in _batches(prompts, batch_rows):
        uniform_TB = uniform_RT[torch.tensor(members, device=device)].t().contiguous()
        batch = _Batch(student, teacher, [prompts[row] for row in members], coins, uniform_TB, settings, counters)
        batch.decode()
        batch.write(result, members)
    return result


def _check(
    student: Decoder,
    teacher: Decoder | None,
    prompts: list[list[int]],
    alpha: float,
    max_new_tokens: int,
    temperature: float,
    vocab: int,
    greedy: bool,
) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    if temperature <= 0.0:
        raise ValueError(f"temperature must be above 0, not {temperature}: use greedy for the most probable token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if greedy and teacher is not None and alpha > 0.0:
        raise ValueError("greedy decoding has no mixture: alpha must be 0")
    if not all(prompts):
        raise ValueError("a prompt has no tokens")
    for decoder in (student, teacher):
        if decoder is None:
            continue
        if vocab > decoder.vocab:
            raise ValueError(f"vocab {vocab} is larger than a model's head, {decoder.vocab}")
        # The last token is not fed: one position less.
        longest = max(map(len, prompts), default=0) + max_new_tokens - 1
        if longest > decoder.context:
            raise ValueError(f"prompt and response may take {longest} positions, the model has {decoder.context}")


def _batches(prompts: list[list[int]], batch_rows: int) -> Iterator[list[int]]:
    """Rows in batches of nearly equal size, prompts of similar length together."""
    if not prompts:
        return
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    count = -(-len(order) // batch_rows)
    for index in range(count):
        yield order[index * len(order) // count : (index + 1) * len(order) // count]


class _Batch:
    """One decoding batch: the student's rows, compacted as they end, and the buffers of what was drawn."""

    def __init__(
        self,
        student: Decoder,
        teacher: Decoder | None,
        prompts: list[list[int]],
        coins: list[bool],
        uniform_TB: torch.Tensor,
        settings: _Settings,
        counters: RolloutCounters,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._prompts, self._coins, self._settings, self._counters = prompts, coins, settings, counters
        self._uniform_TB = uniform_TB
        rows, limit, device = len(prompts), settings.max_new_tokens, student.device
        self._tokens_TB = torch.zeros(limit, rows, dtype=torch.long, device=device)
        self._student_logp_TB = torch.zeros(limit, rows, device=device)
        self._teacher_logp_TB = torch.full((limit, rows), math.nan, device=device)
        self._lengths_B = torch.full((rows,), limit, dtype=torch.long, device=device)
        self._rows = list(range(rows))
        self._rows_B = torch.arange(rows, device=device)
        self._ends: dict[int, int] = {}
        self._scorer = None if teacher is None else LazyTeacher(teacher, prompts, settings.max_new_tokens)

    def decode(self) -> None:
        """Prefill, then one position after the other until every row has ended."""
        student, settings, counters = self._student, self._settings, self._counters
        longest = max(map(len, self._prompts))
        before = student.positions
        with counters.timed("prefill"):
            student.start(len(self._prompts), longest + settings.max_new_tokens - 1)
            tokens_BK = padded(self._prompts, student.device, left=True)
            first = [longest - len(prompt) for prompt in self._prompts]
            hidden_BD = student.chunk(tokens_BK, first, [longest] * len(first))[:, -1]
        for position in range(settings.max_new_tokens):
            token_B = self._draw(position, hidden_BD)
            last = position + 1 == settings.max_new_tokens
            with counters.timed("decode"):
                ended = not last and (position + 1) % settings.sync_every == 0 and self._retire(position)
                if last or ended:
                    break
                if token_B.shape[0] != len(self._rows):
                    token_B = self._tokens_TB[position].index_select(0, self._rows_B)
                hidden_BD = student.step(token_B)
                counters.student_decode_steps += 1
        counters.student_tokens += student.positions - before

    def _draw(self, position: int, hidden_BD: torch.Tensor) -> torch.Tensor:
        """Decide the token of each row at ``position``; ``hidden_BD`` are the student's that predict it."""
        settings, rows_B = self._settings, self._rows_B
        with self._counters.timed("decode"):
            logits_BV = self._student.logits(hidden_BD, settings.vocab)
            uniform_B = self._uniform_TB[position].index_select(0, rows_B)
        if self._coins[position] and self._scorer is not None:
            with self._counters.timed("teacher"):
                token_B, teacher_logp_B = draw(self._ask(position), uniform_B, settings.temperature)
                self._teacher_logp_TB[position].index_copy_(0, rows_B, teacher_logp_B)
        else:
            token_B = None
        with self._counters.timed("decode"):
            if token_B is not None or settings.greedy:
                token_B = logits_BV.argmax(dim=-1) if token_B is None else token_B
                logp_B = logp_of(logits_BV, token_B, settings.temperature)
            else:
                token_B, logp_B = draw(logits_BV, uniform_B, settings.temperature)
            self._tokens_TB[position].index_copy_(0, rows_B, token_B)
            self._student_logp_TB[position].index_copy_(0, rows_B, logp_B)
            is_eos_B = (token_B.unsqueeze(1) == settings.eos).any(dim=1)
            length_B = self._lengths_B.index_select(0, rows_B)
            ended_B = is_eos_B & (length_B > position)
            self._lengths_B.index_copy_(0, rows_B, length_B.masked_fill(ended_B, position + 1))
        return token_B

    def _ask(self, position: int) -> torch.Tensor:
        """The teacher's logits (rows, V) at ``position``, after the chunk of all that it has not seen."""
        assert self._scorer is not None and self._teacher is not None
        before = self._teacher.positions
        hidden_BD = self._scorer.catch_up(position, self._tokens_TB, self._ends)
        self._count_teacher(before)
        if len(self._scorer.rows) > len(self._rows):
            place = {row: place for place, row in enumerate(self._scorer.rows)}
            places = torch.tensor([place[row] for row in self._rows], dtype=torch.long)
            hidden_BD = hidden_BD[places.to(hidden_BD.device, non_blocking=True)]
        return self._teacher.logits(hidden_BD, self._settings.vocab)

    def _count_teacher(self, before: int) -> None:
        assert self._teacher is not None
        self._counters.teacher_tokens += self._teacher.positions - before
        self._counters.teacher_calls += self._teacher.positions > before

    def _retire(self, position: int) -> bool:
        """Drop the rows that have ended up to ``position``; whether none is left. Waits for the device."""
        lengths = self._lengths_B.index_select(0, self._rows_B).tolist()
        keep = [place for place, length in enumerate(lengths) if length > position + 1]
        if len(keep) == len(lengths):
            return False
        ended = set(range(len(lengths))) - set(keep)
        self._ends.update({self._rows[place]: lengths[place] for place in ended})
        self._rows = [self._rows[place] for place in keep]
        if not keep:
            return True
        keep_B = torch.tensor(keep, dtype=torch.long).to(self._student.device, non_blocking=True)
        self._rows_B = self._rows_B.index_select(0, keep_B)
        self._student.retire(keep_B)
        return False

    def write(self, result: Rollouts, members: list[int]) -> None:
        """Score what is not scored yet, and put the rows where they belong."""
        lengths = self._lengths_B.tolist()
        tokens = self._tokens_TB.t().tolist()
        eos = set(self._settings.eos.tolist())
        hidden: list[torch.Tensor] = []
        teacher_logp_BT = torch.empty(0)
        if self._scorer is not None:
            with self._counters.timed("score"):
                hidden = self._finish_hidden(lengths, tokens)
                teacher_logp_BT = self._finish_teacher_logp(lengths, hidden)
        student_logp_BT = self._student_logp_TB.t()
        for place, (row, length) in enumerate(zip(members, lengths, strict=True)):
            response = tokens[place][:length]
            result.response_ids[row] = response
            result.truncated[row] = response[-1] not in eos
            result.student_logp[row] = student_logp_BT[place, :length].clone()
            if result.teacher_logp is not None:
                result.teacher_logp[row] = teacher_logp_BT[place, :length].clone()
            if result.teacher_hidden is not None:
                result.teacher_hidden[row] = hidden[place]

    def _finish_hidden(self, lengths: list[int], tokens: list[list[int]]) -> list[torch.Tensor]:
        """The teacher's hidden states (T_i, D) of every row."""
        assert self._scorer is not None and self._teacher is not None
        before = self._teacher.positions
        if self._scorer.started:
            self._scorer.close(lengths, self._tokens_TB)
            hidden_BTD = self._scorer.hidden_BTD
            hidden = [hidden_BTD[row, :length].clone() for row, length in enumerate(lengths)]
        else:
            pairs = list(zip(self._prompts, tokens, lengths, strict=True))
            sequences = [prompt + response[: length - 1] for prompt, response, length in pairs]
            hidden = self._teacher.score(sequences, [len(prompt) - 1 for prompt in self._prompts])
        self._count_teacher(before)
        return hidden

    def _finish_teacher_logp(self, lengths: list[int], hidden: list[torch.Tensor]) -> torch.Tensor:
        """Log p (B, T): heads were read when they were drawn, of the others those that are asked for are read here."""
        assert self._teacher is not None
        settings = self._settings
        every = settings.teacher_logp_every
        tails = torch.tensor([not coin and position % every == 0 for position, coin in enumerate(self._coins)])
        joined_ND = torch.cat([part[tails[: part.shape[0]].to(part.device)] for part in hidden])
        index_N = packed_index([0] * len(lengths), lengths, settings.max_new_tokens, torch.device("cpu"))
        index_N = index_N[tails[index_N % settings.max_new_tokens]].to(joined_ND.device)
        logp_BT = self._teacher_logp_TB.t().contiguous()
        logp_N = logp_from_hidden(
            self._teacher.logits,
            joined_ND,
            self._tokens_TB.t().flatten()[index_N],
            vocab=settings.vocab,
            temperature=settings.temperature,
        )
        logp_BT.view(-1).index_copy_(0, index_N, logp_N)
        return logp_BT
