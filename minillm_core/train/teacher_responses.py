"""Sequence-level distillation's data: one response of the teacher to every training prompt.

The responses are sampled once, in blocks that are kept as files and travel with checkpoints, so
that hours of sampling survive a stop. The dataset's own responses are not used.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from minillm_core.data.dataset import TokenizedRow
from minillm_core.rollout.decoder import Decoder
from minillm_core.spec import Phase
from minillm_core.train.loop import Run
from minillm_core.train.methods import Method
from minillm_core.train.rollouts import draw
from minillm_core.train.rounds import derived_seed
from minillm_core.train.stop import Stopped

BLOCK_ROWS = 256
_BLOCKS_PER_CHECKPOINT = 8


def with_teacher_responses(
    run: Run, teacher: Decoder, method: Method, rows: list[TokenizedRow], tokenizer: PreTrainedTokenizerBase
) -> list[TokenizedRow]:
    """``rows`` with the teacher's responses in the place of theirs. Raises Stopped when asked to stop."""
    seed = derived_seed(run.job.seed, "teacher_responses")
    folder, ranks = run.checkpoints.kept, run.ranks
    run.progress.enter(Phase.GENERATING, f"the teacher's responses to {len(rows)} prompts")
    found: list[TokenizedRow] = []
    written = 0
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        path = folder / f"teacher_responses-{start // BLOCK_ROWS:06d}.json"
        if not ranks.broadcast(path.exists()):
            own = ranks.share(len(block))
            drawn = draw(
                teacher,
                None,
                [block[index].prompt_ids for index in own],
                [start + index for index in own],
                run.sampling,
                alpha=0.0,
                temperature=method.temperature,
                seed=seed,
            )
            pieces = ranks.gather(list(zip(own, drawn.response_ids, drawn.truncated, strict=True)))
            answers = [piece[1:] for piece in sorted(piece for part in pieces for piece in part)]
            if ranks.main:
                aside = path.with_name(f".{path.name}.{os.getpid()}")
                aside.write_text(json.dumps(answers))
                aside.replace(path)
            ranks.barrier()
            written += 1
            stopping = run.stop.agreed(ranks)
            if stopping or written % _BLOCKS_PER_CHECKPOINT == 0:
                state = run.state
                state.phase, state.step = Phase.GENERATING.value, start // BLOCK_ROWS + 1
                run.checkpoints.save(state, None, None, {})
            if stopping:
                raise Stopped(f"stopped after {start + len(block)} of the teacher's responses")
        for row, (response_ids, truncated) in zip(block, json.loads(path.read_text()), strict=True):
            text = str(tokenizer.decode(response_ids, skip_special_tokens=True))
            found.append(replace(row, response_ids=response_ids, response_text=text, truncated=truncated))
    return found
