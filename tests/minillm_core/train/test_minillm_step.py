"""The MiniLLM step, from sampled rows to the gradient, against its formulas: loops over dense logits, in float64.

Axes: T response positions of one row, V vocabulary.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minillm_core.rollout.decoder import make_decoder
from minillm_core.spec import JobSpec, ResourceSpec
from minillm_core.train.methods import resolve_method
from minillm_core.train.rollouts import Sampling, collect_round
from minillm_core.train.rounds import TrainRow
from minillm_core.train.student import StudentModule, loss_head
from tests.minillm_core.tiny_runs import tiny_spec
from tests.minillm_core.train import step_bench as bench


def job(**settings) -> JobSpec:
    return JobSpec.model_validate(tiny_spec(method={"type": "minillm", "rollouts_per_round": 8, **settings}))


def log_softmax(model, prompt, response, vocab, temperature):
    """(T, V) at the positions that predict the response, float64."""
    logits_TV = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1, :vocab]
    return (logits_TV.double() / temperature).log_softmax(dim=-1)


def reward_to_go(rewards, t, settings):
    """R_{t+1} (or R_t) of one response, by its definition."""
    summed = rewards[t + 1 :] if settings["reward_start"] == "next" else rewards[t:]
    if not summed:
        return 0.0
    total = math.fsum(settings["gamma"] ** k * reward for k, reward in enumerate(summed))
    return total / len(summed) if settings["length_norm"] else total


def whitened(values, mode, width):
    """Over the tokens, or over ``width`` positions a row."""
    flat = [value for row in values for value in row]
    if mode == "off":
        return values
    count = len(values) * width if mode == "padded" else len(flat)
    mean = math.fsum(flat) / count
    variance = math.fsum(value * value for value in flat) / count - mean * mean
    return [[(value - mean) / math.sqrt(variance + 1e-8) for value in row] for row in values]


def slow_loss(rows, sampled, present, teacher, settings, width):
    """Loss, share of tokens clipped. The log-probabilities (T, V) of the student that sampled, of the present
    one (with graph) and of the teacher, one entry a row."""
    alpha, scale = settings["teacher_mix_alpha"], settings["reward_scale"]
    bound = math.inf if settings["reward_clip"] is None else settings["reward_clip"]
    rewards, weights, baseline = [], [], settings["reward_baseline"]
    for row, old_TV, p_TV in zip(rows, sampled, teacher, strict=True):
        pairs = [(old_TV[t, y].item(), p_TV[t, y].item()) for t, y in enumerate(row.response_ids)]
        rewards.append([max(-bound, min(bound, (p - q) / scale)) for q, p in pairs])
        weights.append([math.exp(q) / ((1 - alpha) * math.exp(q) + alpha * math.exp(p)) for q, p in pairs])
    returns = [[reward_to_go(row, t, settings) - baseline for t in range(len(row))] for row in rewards]
    advantages = whitened(returns, settings["whitening"], width)
    total, tokens, clipped = torch.zeros((), dtype=torch.float64), 0, 0
    for b, row in enumerate(rows):
        for t, token in enumerate(row.response_ids):
            w, a = weights[b][t], advantages[b][t]
            rho = w * (present[b][t, token] - sampled[b][t, token].detach()).exp()
            low, high = 1 - settings["cliprange"], 1 + settings["cliprange"]
            if not settings["clip"]:
                long = -a * rho
            elif settings["clip_sign"] == "signed":
                long = torch.maximum(-a * rho, -a * rho.clamp(low, high))
                clipped += bool(long > -a * rho)
            else:
                long = -a * torch.minimum(rho, rho.clamp(low, high))
                clipped += bool(rho > high)
            q_V = present[b][t].exp()
            single = (q_V * (present[b][t] - teacher[b][t])).sum() * (w if settings["single_step_weighted"] else 1.0)
            total = total + long * settings["long_part"] + single * settings["single_step"]
            tokens += 1
    return total / tokens, clipped / tokens


PLAIN = {"whitening": "off", "recipe": "paper", "clip_sign": "signed"}
SETTINGS = {
    "default": {},
    "paper": {"recipe": "paper"},
    "reference": {"recipe": "reference"},
    "plain": PLAIN,
    "reward_scale": {**PLAIN, "reward_scale": 0.5},
    "reward_clip": {**PLAIN, "reward_clip": 0.8},
    "scaled, then clipped": {**PLAIN, "reward_scale": 0.5, "reward_clip": 0.8},
    "reward_baseline": {**PLAIN, "reward_baseline": 1.0},
    "reward_start": {**PLAIN, "reward_start": "current"},
    "gamma": {**PLAIN, "gamma": 0.8},
    "length_norm": {**PLAIN, "length_norm": False},
    "masked": {**PLAIN, "whitening": "masked"},
    "padded": {**PLAIN, "whitening": "padded"},
    "clip": {**PLAIN, "clip": False},
    "cliprange": {**PLAIN, "cliprange": 0.05},
    "clip_sign": {**PLAIN, "clip_sign": "unsigned"},
    "long_part": {**PLAIN, "long_part": False},
    "single_step": {**PLAIN, "single_step": False},
    "single_step_weighted": {**PLAIN, "single_step_weighted": False},
    "alpha 0": {**PLAIN, "teacher_mix_alpha": 0.0},
    "alpha 0.5": {**PLAIN, "teacher_mix_alpha": 0.5},
    "temperature": {**PLAIN, "temperature": 1.7},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    models = bench.make_models(tmp_path_factory.mktemp("teacher"))
    yield models
    models.engine.close()


@pytest.fixture
def models(shared):
    """A test may move the student."""
    kept = [parameter.detach().clone() for parameter in shared.student.parameters()]
    yield shared
    with torch.no_grad():
        for parameter, tensor in zip(shared.student.parameters(), kept, strict=True):
            parameter.copy_(tensor)


def dense(model, rows, temperature):
    return [log_softmax(model, row.prompt_ids, row.response_ids, bench.VOCAB, temperature) for row in rows]


@pytest.mark.parametrize("name", SETTINGS)
def test_value_and_gradient_are_those_of_the_formulas(models, name):
    """A step of a later inner epoch: the student has moved since it sampled, so that no ratio is 1."""
    spec = job(**SETTINGS[name])
    settings, method = spec.method.resolved().model_dump(), resolve_method(spec)
    round_, *_ = collect_round(
        0,
        bench.make_rows(),
        method,
        student=make_decoder(models.student),
        teacher=models.answering,
        # Many tokens end a response, so that lengths differ; none is as long as the step has room for.
        sampling=Sampling(range(40), bench.VOCAB, bench.WIDTH - 3, batch_rows=4),
        rows_per_step=8,
        seed=5,
        ranks=models.ranks,
    )
    rows = round_.next_rows()
    assert len({len(row.response_ids) for row in rows}) > 2
    with torch.no_grad():
        sampled = dense(models.student, rows, method.temperature)
        teacher = dense(models.teacher, rows, method.temperature)
        generator = torch.Generator().manual_seed(1)
        for parameter in models.student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    metrics, gradient = bench.step_gradient(models, method, rows, budget=60)

    present = dense(models.student, rows, method.temperature)
    loss, clipped = slow_loss(rows, sampled, present, teacher, settings, bench.WIDTH)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    assert metrics["clip_fraction"] == pytest.approx(clipped, abs=1e-9)
    assert (clipped > 0) == settings["clip"]
    if name not in ("plain", "temperature"):
        plain = job(**PLAIN).method.resolved().model_dump()
        without, _ = slow_loss(rows, sampled, present, teacher, plain, bench.WIDTH)
        assert abs(without - loss).item() > 1e-3, "the setting does not show in the loss"
    named = dict(models.student.named_parameters())
    for tensor, wanted in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
        error = (gradient[tensor] - wanted).abs().max().item()
        assert error <= 2e-4 * max(1e-3, wanted.abs().max().item()), (tensor, error)


class TestEveryResponse:
    """A vocabulary of three: each response is sampled, goes through a step of its own, and the steps add up."""

    VOCAB, EOS, LONGEST, PROMPT = 3, 0, 3, (1, 0, 2)

    def model(self, seed, layers):
        torch.manual_seed(seed)
        shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
        config = LlamaConfig(
            vocab_size=5, num_hidden_layers=layers, max_position_embeddings=16, eos_token_id=self.EOS, **shape
        )
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return model

    def listed(self):
        """Every response: it ends with its first eos or at the longest length."""
        bodies = [body for size in range(self.LONGEST) for body in itertools.product((1, 2), repeat=size)]
        ended = [(*body, self.EOS) for body in bodies]
        return ended + list(itertools.product((1, 2), repeat=self.LONGEST))

    def rows(self, models, method) -> dict[tuple[int, ...], TrainRow]:
        """Of one round so large that it has every response."""
        rows = [bench.TokenizedRow(list(self.PROMPT), [self.EOS], "", "", False)] * 4000
        round_, *_ = collect_round(
            0,
            rows,
            method,
            student=make_decoder(models.student),
            teacher=models.answering,
            sampling=Sampling([self.EOS], self.VOCAB, self.LONGEST, batch_rows=4000),
            rows_per_step=4000,
            seed=1,
            ranks=models.ranks,
        )
        found = {tuple(row.response_ids): row for row in round_.rows.values()}
        assert found.keys() == set(self.listed())
        return found

    def logp(self, model, response):
        logp_TV = log_softmax(model, self.PROMPT, response, self.VOCAB, 1.0)
        return logp_TV.gather(1, torch.tensor(response)[:, None]).squeeze(1)

    def test_add_up_to_the_gradient_of_the_sequence_level_reverse_kl(self):
        teacher, student = self.model(1, 2).requires_grad_(False), self.model(2, 1)
        models = bench.Models(teacher, student)
        models.engine = self.engine(models)
        method = resolve_method(job(recipe="paper", clip=False, length_norm=False, teacher_mix_alpha=0.0))
        rows = self.rows(models, method)
        got = {name: torch.zeros_like(tensor).double() for name, tensor in student.named_parameters()}
        divergence = torch.zeros((), dtype=torch.float64)
        for response in self.listed():
            logq = self.logp(student, response).sum()
            divergence = divergence + logq.exp() * (logq - self.logp(teacher, response).sum())
            # A step divides by its tokens.
            factor = logq.exp().item() * len(response)
            _, gradient = bench.step_gradient(models, method, [rows[response]])
            for name, tensor in gradient.items():
                got[name] += factor * tensor.double()
        named = dict(student.named_parameters())
        assert divergence.item() > 0.1
        for name, wanted in zip(named, torch.autograd.grad(divergence, list(named.values())), strict=True):
            torch.testing.assert_close(got[name], wanted.double(), rtol=1e-4, atol=1e-5)
        models.engine.close()

    def engine(self, models):
        head = loss_head(models.answering.head, self.VOCAB)
        return bench.Watched(
            StudentModule(models.student, vocab=self.VOCAB, teacher_head=head, zero_stage=0),
            learning_rate=1e-3,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            grad_clip=1.0,
            dtype="float32",
            resources=ResourceSpec(zero_stage=0),
            ranks=models.ranks,
        )
