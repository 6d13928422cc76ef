"""Sampling against full forward passes, exact enumeration and transformers' own generation."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from minillm_core.rollout.decoder import make_decoder
from minillm_core.rollout.sampling import Noise, Rollouts, sample
from tests.minillm_core.rollout.naive import response_law, response_logp, sample_naively

VOCAB = 37
"""Of the models' 40: the last three are padding that must never be drawn."""
EOS = 1
Make = Callable[..., PreTrainedModel]


def _sample(student: Any, teacher: Any, prompts: list[list[int]], **changes: Any) -> Rollouts:
    """``sample`` with the settings of these tests; models are made into decoders."""
    as_decoder = [make_decoder(model) if isinstance(model, PreTrainedModel) else model for model in (student, teacher)]
    settings: dict[str, Any] = {
        "alpha": 0.3,
        "max_new_tokens": 12,
        "temperature": 1.0,
        "eos_ids": [EOS],
        "vocab": VOCAB,
        "batch_rows": 64,
        "keep_teacher_hidden": True,
        "seed": 3,
        **changes,
    }
    positions = settings["max_new_tokens"]
    settings["noise"] = Noise.of_rows(settings.pop("seed"), range(len(prompts)), positions)
    return sample(*as_decoder, prompts, **settings)


def _fed(rollouts: Rollouts) -> int:
    """Tokens that each model has to see: everything but each row's last."""
    pairs = zip(rollouts.prompt_ids, rollouts.response_ids, strict=True)
    return sum(len(prompt) + len(response) - 1 for prompt, response in pairs)


class TestValues:
    @pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gpt2", "gemma2"])
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_are_those_of_a_full_forward_pass(
        self, kind: str, alpha: float, make_model: Make, prompts: list[list[int]]
    ) -> None:
        student, teacher = make_model(kind, seed=1), make_model(kind, seed=2, layers=3)
        rollouts = _sample(student, teacher, prompts, alpha=alpha, temperature=0.8, batch_rows=4, eos_ids=range(8))
        assert rollouts.prompt_ids == prompts
        assert len({len(response) for response in rollouts.response_ids}) > 1
        assert rollouts.teacher_logp is not None and rollouts.teacher_hidden is not None
        for row, prompt in enumerate(prompts):
            response = rollouts.response_ids[row]
            close = {"atol": 1e-4, "rtol": 1e-4}
            expected = response_logp(student, prompt, response, VOCAB, 0.8)
            torch.testing.assert_close(rollouts.student_logp[row], expected, **close)
            expected = response_logp(teacher, prompt, response, VOCAB, 0.8)
            torch.testing.assert_close(rollouts.teacher_logp[row], expected, **close)
            with torch.no_grad():
                base = getattr(teacher, teacher.base_model_prefix)
                hidden = base(input_ids=torch.tensor([prompt + response]), use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(rollouts.teacher_hidden[row], hidden[len(prompt) - 1 : -1], **close)

    @pytest.mark.parametrize("alpha", [0.0, 0.3])
    def test_the_teachers_values_are_taken_where_they_are_asked_for(
        self, alpha: float, make_model: Make, prompts: list[list[int]]
    ) -> None:
        student, teacher = make_model("llama", seed=1), make_model("llama", seed=2)
        whole = _sample(student, teacher, prompts, alpha=alpha)
        part = _sample(student, teacher, prompts, alpha=alpha, teacher_logp_every=5)
        assert part.response_ids == whole.response_ids
        coins = Noise.of_rows(3, range(len(prompts)), 12).coin_T < alpha
        taken = coins | (torch.arange(12) % 5 == 0)
        assert part.teacher_logp is not None and whole.teacher_logp is not None
        for some, every in zip(part.teacher_logp, whole.teacher_logp, strict=True):
            here = taken[: len(every)]
            torch.testing.assert_close(some[here], every[here])
            assert some[~here].isnan().all() and not every.isnan().any()

    def test_hidden_states_go_into_an_autograd_graph(self, make_model: Make, prompts: list[list[int]]) -> None:
        rollouts = _sample(make_model("llama"), make_model("llama", seed=1), prompts)
        assert rollouts.teacher_hidden is not None
        weight = torch.ones(32, requires_grad=True)
        (rollouts.teacher_hidden[0] * weight).sum().backward()
        assert weight.grad is not None

    def test_without_a_teacher_there_are_none_of_its_values(self, make_model: Make, prompts: list[list[int]]) -> None:
        rollouts = _sample(make_model("llama"), None, prompts, alpha=0.3)
        assert rollouts.teacher_logp is None and rollouts.teacher_hidden is None
        assert rollouts.counters.teacher_tokens == rollouts.counters.teacher_calls == 0

    def test_hidden_states_are_kept_on_request_only(self, make_model: Make, prompts: list[list[int]]) -> None:
        model = make_model("llama")
        rollouts = _sample(model, model, prompts, keep_teacher_hidden=False)
        assert rollouts.teacher_hidden is None and rollouts.teacher_logp is not None

    def test_half_precision_values_are_those_of_the_distribution_sampled_from(
        self, make_model: Make, prompts: list[list[int]]
    ) -> None:
        student, teacher = make_model("llama"), make_model("llama", seed=1)
        rollouts = _sample(make_decoder(student, dtype=torch.bfloat16), teacher, prompts)
        for row, prompt in enumerate(prompts):
            values = rollouts.student_logp[row]
            assert values.dtype == torch.float32
            expected = response_logp(student, prompt, rollouts.response_ids[row], VOCAB, 1.0)
            assert (values - expected).abs().max() < 0.2


class TestLaw:
    """Responses of a vocabulary of four against the exact probability of each."""

    LAW: ClassVar[dict[str, Any]] = {"vocab": 4, "temperature": 1.5, "eos": EOS}
    DRAW: ClassVar[dict[str, Any]] = {"vocab": 4, "temperature": 1.5}
    PROMPT: ClassVar[list[int]] = [2, 3]

    @pytest.fixture
    def models(self, make_model: Make) -> tuple[PreTrainedModel, PreTrainedModel]:
        return make_model("llama", vocab=6, seed=11), make_model("llama", vocab=6, seed=12)

    def _distance(self, responses: list[list[int]], law: dict[tuple[int, ...], float]) -> float:
        """(chi^2 - degrees of freedom) / sqrt(2 degrees of freedom): near standard normal if the law is right."""
        counts = Counter(map(tuple, responses))
        assert set(counts) <= set(law)
        total = len(responses)
        common = {key: mass for key, mass in law.items() if mass * total >= 5}
        rare = 1.0 - sum(common.values())
        chi = sum((counts[key] - total * mass) ** 2 / (total * mass) for key, mass in common.items())
        if rare > 1e-9:
            others = total - sum(counts[key] for key in common)
            chi += (others - total * rare) ** 2 / (total * rare)
        degrees = len(common) - (rare <= 1e-9)
        return (chi - degrees) / math.sqrt(2 * degrees)

    @pytest.mark.parametrize("alpha", [0.0, 1.0])
    def test_one_model_alone(self, alpha: float, models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
        law = response_law(*models, self.PROMPT, alphas=[alpha] * 3, **self.LAW)
        assert sum(law.values()) == pytest.approx(1.0, abs=1e-5)
        rollouts = _sample(*models, [self.PROMPT] * 6000, alpha=alpha, max_new_tokens=3, batch_rows=1000, **self.DRAW)
        assert abs(self._distance(rollouts.response_ids, law)) < 3.5
        other = response_law(*models, self.PROMPT, alphas=[1.0 - alpha] * 3, **self.LAW)
        assert abs(self._distance(rollouts.response_ids, other)) > 10

    def test_given_the_coins_of_its_call(self, models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
        """Heads are drawn from the teacher and tails from the student, for every sequence of coins."""
        rows, limit, alpha = 250, 3, 0.5
        by_coins: dict[tuple[bool, ...], list[list[int]]] = {}
        for seed in range(48):
            rollouts = _sample(
                *models,
                [self.PROMPT] * rows,
                alpha=alpha,
                max_new_tokens=limit,
                batch_rows=rows,
                seed=seed,
                **self.DRAW,
            )
            coins = Noise.of_rows(seed, [], limit).coin_T < alpha
            by_coins.setdefault(tuple(coins.tolist()), []).extend(rollouts.response_ids)
        assert len(by_coins) == 2**limit
        for coins, responses in by_coins.items():
            law = response_law(*models, self.PROMPT, alphas=[float(coin) for coin in coins], **self.LAW)
            assert abs(self._distance(responses, law)) < 3.5

    def test_averaged_over_the_coins_is_the_mixture(self, models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
        alpha = 0.3
        mixed = response_law(*models, self.PROMPT, alphas=[alpha] * 2, **self.LAW)
        averaged: Counter[tuple[int, ...]] = Counter()
        for coins in itertools.product((0.0, 1.0), repeat=2):
            weight = math.prod(alpha if coin else 1 - alpha for coin in coins)
            for response, mass in response_law(*models, self.PROMPT, alphas=coins, **self.LAW).items():
                averaged[response] += weight * mass
        assert averaged == pytest.approx(mixed, abs=1e-6)

    def test_one_row_of_each_call_against_the_mixture(self, models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
        law = response_law(*models, self.PROMPT, alphas=[0.4] * 2, **self.LAW)
        # Rows of one call share their coins; calls of different seeds are independent.
        drawn = [
            _sample(*models, [self.PROMPT] * 2, alpha=0.4, max_new_tokens=2, batch_rows=2, seed=seed, **self.DRAW)
            for seed in range(500)
        ]
        assert abs(self._distance([rollouts.response_ids[0] for rollouts in drawn], law)) < 3.5

    def test_the_naive_sampler_has_it(self, models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
        law = response_law(*models, self.PROMPT, alphas=[0.4] * 2, **self.LAW)
        generator = torch.Generator().manual_seed(0)
        responses = sample_naively(*models, [self.PROMPT] * 300, alpha=0.4, limit=2, generator=generator, **self.LAW)
        assert abs(self._distance(responses, law)) < 3.5


class TestRows:
    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    def test_do_not_depend_on_the_batch(self, kind: str, make_model: Make, prompts: list[list[int]]) -> None:
        student, teacher = make_decoder(make_model(kind)), make_decoder(make_model(kind, seed=1))
        together = _sample(student, teacher, prompts, alpha=0.0)
        for changes in ({"batch_rows": 1}, {"batch_rows": 3}, {"sync_every": 5}):
            apart = _sample(student, teacher, prompts, alpha=0.0, **changes)
            assert apart.response_ids == together.response_ids
            assert together.teacher_logp is not None and apart.teacher_logp is not None
            for one, other in zip(together.teacher_logp, apart.teacher_logp, strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

    def test_mixed_rows_do_not_depend_on_when_the_ended_ones_leave(
        self, make_model: Make, prompts: list[list[int]]
    ) -> None:
        student, teacher = make_decoder(make_model("llama")), make_decoder(make_model("llama", seed=1))
        eager, late = (_sample(student, teacher, prompts, sync_every=steps) for steps in (1, 5))
        assert eager.response_ids == late.response_ids
        assert eager.teacher_logp is not None and late.teacher_logp is not None
        for one, other in zip(eager.teacher_logp, late.teacher_logp, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

    def test_keep_the_order_of_the_prompts(self, make_model: Make, prompts: list[list[int]]) -> None:
        decoder = make_decoder(make_model("llama"))
        greedy = _sample(decoder, None, prompts, greedy=True, batch_rows=2)
        turned = _sample(decoder, None, prompts[::-1], greedy=True, batch_rows=3)
        assert turned.response_ids[::-1] == greedy.response_ids

    def test_the_seed_decides(self, make_model: Make, prompts: list[list[int]]) -> None:
        student, teacher = make_decoder(make_model("llama")), make_decoder(make_model("llama", seed=1))
        first, again, other = (_sample(student, teacher, prompts, seed=seed) for seed in (3, 3, 4))
        assert first.response_ids == again.response_ids != other.response_ids
        assert all(map(torch.equal, first.student_logp, again.student_logp))

    def test_padding_of_the_vocabulary_is_never_drawn(self, make_model: Make) -> None:
        model = make_model("llama")
        with torch.no_grad():
            model.get_output_embeddings().weight[VOCAB:] = 0.0
            model.get_output_embeddings().weight[:VOCAB] -= 10 * model.model.norm.weight
        rollouts = _sample(model, None, [[2, 3]] * 50, eos_ids=[])
        assert max(max(response) for response in rollouts.response_ids) < VOCAB

    def test_no_prompts(self, make_model: Make) -> None:
        rollouts = _sample(make_model("llama"), None, [])
        assert rollouts.response_ids == rollouts.student_logp == []


class TestGreedy:
    @pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gemma2"])
    def test_is_transformers_generation(self, kind: str, make_model: Make, prompts: list[list[int]]) -> None:
        model = make_model(kind)
        rollouts = _sample(model, None, prompts, greedy=True, vocab=40)
        for prompt, response in zip(prompts, rollouts.response_ids, strict=True):
            expected = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=12,
                eos_token_id=EOS,
                pad_token_id=0,
            )
            assert response == expected[0, len(prompt) :].tolist()


class TestEnd:
    @pytest.fixture
    def ends_at_once(self, make_model: Make) -> PreTrainedModel:
        """A model that says eos whatever it reads."""
        model = make_model("llama")
        with torch.no_grad():
            model.model.norm.weight.fill_(0.0)
            model.get_output_embeddings().weight.fill_(0.0)
        return model

    def test_the_first_eos_is_the_last_token(self, make_model: Make, prompts: list[list[int]]) -> None:
        rollouts = _sample(make_model("llama"), None, prompts * 6)
        ended = 0
        for response, truncated in zip(rollouts.response_ids, rollouts.truncated, strict=True):
            assert EOS not in response[:-1]
            assert truncated == (response[-1] != EOS)
            assert truncated <= (len(response) == 12)
            ended += not truncated
        assert 0 < ended < len(rollouts.response_ids)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_one_token_responses(self, alpha: float, ends_at_once: PreTrainedModel, prompts: list[list[int]]) -> None:
        # Uniform logits and a vocabulary of one token: it is drawn with certainty.
        rollouts = _sample(ends_at_once, ends_at_once, prompts, alpha=alpha, vocab=1, eos_ids=[0], max_new_tokens=5)
        assert rollouts.response_ids == [[0]] * len(prompts)
        assert rollouts.truncated == [False] * len(prompts)
        assert rollouts.teacher_logp is not None and rollouts.teacher_hidden is not None
        assert all(value.tolist() == [0.0] for value in rollouts.student_logp + rollouts.teacher_logp)
        assert all(hidden.shape == (1, 32) for hidden in rollouts.teacher_hidden)
        assert rollouts.counters.student_decode_steps == 0
        assert rollouts.counters.teacher_tokens == sum(map(len, prompts))

    def test_without_eos_every_response_is_truncated(self, make_model: Make, prompts: list[list[int]]) -> None:
        rollouts = _sample(make_model("llama"), None, prompts, eos_ids=[])
        assert rollouts.truncated == [True] * len(prompts)
        assert {len(response) for response in rollouts.response_ids} == {12}

    def test_the_last_position_may_be_an_eos(self, ends_at_once: PreTrainedModel) -> None:
        rollouts = _sample(ends_at_once, None, [[2]], vocab=1, eos_ids=[0], max_new_tokens=1)
        assert rollouts.truncated == [False]


class TestCounters:
    @pytest.mark.parametrize("alpha", [0.0, 0.2, 0.6, 1.0])
    def test_each_token_passes_each_model_once(self, alpha: float, make_model: Make, prompts: list[list[int]]) -> None:
        student, teacher = make_model("llama"), make_model("llama", seed=1)
        rollouts = _sample(student, teacher, prompts, alpha=alpha)
        counters = rollouts.counters
        assert counters.teacher_tokens == counters.student_tokens == _fed(rollouts)
        longest = max(map(len, rollouts.response_ids))
        assert counters.student_decode_steps == longest - 1
        assert set(counters.seconds) == {"prefill", "decode", "teacher", "score"}
        assert all((seconds > 0) == (alpha > 0 or part != "teacher") for part, seconds in counters.seconds.items())

    def test_the_teacher_is_called_at_heads_and_at_the_end(self, make_model: Make, prompts: list[list[int]]) -> None:
        student, teacher = make_model("llama"), make_model("llama", seed=1)
        calls = [_sample(student, teacher, prompts, alpha=alpha, eos_ids=[]).counters for alpha in (0.0, 0.3, 1.0)]
        assert calls[0].teacher_calls == 1
        assert 1 < calls[1].teacher_calls < 12
        assert calls[2].teacher_calls == 12


class _Waits(TorchDispatchMode):
    """Counts operators whose result the host must wait for on a device."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "item", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        self.count += name in self.WAITING
        if name in ("index", "index_put", "index_put_"):
            self.count += any(index is not None and index.dtype == torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("every", [4, 8])
def test_the_decode_loop_waits_for_the_device_every_k_steps(
    kind: str, every: int, make_model: Make, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = make_decoder(make_model(kind)), make_decoder(make_model(kind, seed=1))
    waits = _Waits()
    reads = 0

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            nonlocal reads
            reads += 1
            return method(*args, **kwargs)

        return read

    for name in ("tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    counts = []
    for steps in (33, 65):
        waits.count = reads = 0
        with waits:
            _sample(student, teacher, prompts, eos_ids=[], max_new_tokens=steps, alpha=0.2, sync_every=every)
        counts.append(waits.count + reads)
    # What a call costs whatever its length cancels out: only the loop is left.
    assert counts[1] - counts[0] == 32 // every


class TestArguments:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"alpha": 1.5}, "alpha"),
            ({"temperature": 0.0}, "temperature"),
            ({"max_new_tokens": 0}, "max_new_tokens"),
            ({"batch_rows": 0}, "batch_rows"),
            ({"greedy": True}, "greedy"),
            ({"vocab": 41}, "vocab"),
            ({"max_new_tokens": 128}, "positions"),
        ],
    )
    def test_out_of_range(self, changes: dict[str, Any], message: str, make_model: Make) -> None:
        model = make_model("llama")
        with pytest.raises(ValueError, match=message):
            _sample(model, model, [[2, 3]], **changes)

    def test_an_empty_prompt(self, make_model: Make) -> None:
        with pytest.raises(ValueError, match="no tokens"):
            _sample(make_model("llama"), None, [[2], []])

    def test_the_longest_row_fits_the_context_exactly(self, make_model: Make) -> None:
        rollouts = _sample(make_model("llama"), None, [[2, 3]], max_new_tokens=127, eos_ids=[])
        assert len(rollouts.response_ids[0]) == 127


class TestNoise:
    def test_a_row_has_its_own_wherever_it_is_drawn(self) -> None:
        whole = Noise.of_rows(7, range(6), 5)
        share = Noise.of_rows(7, [1, 3, 5], 5)
        assert torch.equal(share.uniform_RT, whole.uniform_RT[1::2])
        assert torch.equal(share.coin_T, whole.coin_T)

    def test_rows_coins_and_seeds_differ(self) -> None:
        noise = Noise.of_rows(7, range(3), 64)
        streams = [*noise.uniform_RT, noise.coin_T, *Noise.of_rows(8, range(3), 64).uniform_RT]
        assert len({tuple(stream.tolist()) for stream in streams}) == len(streams)
        assert all(float(stream.min()) >= 0.0 and float(stream.max()) < 1.0 for stream in streams)
