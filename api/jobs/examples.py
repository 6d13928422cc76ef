"""Request bodies shown in the OpenAPI document; a test validates each."""

from __future__ import annotations

from typing import Any

Examples = dict[str, Any]

CREATE: Examples = {
    "pruned": {
        "summary": "A student made of ten of the teacher's layers",
        "value": {
            "name": "smol",
            "seed": 7,
            "metadata": {"team": "search"},
            "teacher": {"model": "path:smollm2-135m-instruct"},
            "student": {"prune_teacher": {"layers": 10}},
            "dataset": {"file": "file_01jd4w0k3m5n7p9r1t3v5x7z9b", "template": "chat"},
            "method": {"type": "minillm"},
            "training": {
                "max_steps": 1000,
                "rows_per_step": 64,
                "learning_rate": 5e-6,
                "max_prompt_tokens": 256,
                "max_new_tokens": 256,
            },
        },
    },
    "hub": {
        "summary": "Two models of the hub, on eight accelerators",
        "value": {
            "teacher": {"model": "hub:HuggingFaceTB/SmolLM2-1.7B-Instruct", "revision": "main"},
            "student": {"model": "hub:HuggingFaceTB/SmolLM2-135M"},
            "dataset": {"file": "file_01jd4w0k3m5n7p9r1t3v5x7z9b"},
            "method": {"type": "minillm", "recipe": "paper", "teacher_mix_alpha": 0.2},
            "resources": {"gpus": 8, "zero_stage": 2},
            "evaluation": {"metrics": ["rouge_l", "exposure_bias", "calibration"]},
        },
    },
    "word_level": {
        "summary": "Word-level distillation, the baseline",
        "value": {
            "teacher": {"model": "path:smollm2-135m-instruct"},
            "student": {"prune_teacher": {"layers": [0, 4, 8, 12, 16, 20, 24, 29]}},
            "dataset": {"file": "file_01jd4w0k3m5n7p9r1t3v5x7z9b"},
            "method": {"type": "kd", "kd_ratio": 0.5, "divergence": "forward_kl"},
        },
    },
}

CANCEL: Examples = {"keep_best": {"summary": "Keep the best checkpoint", "value": {"keep": "best"}}}
RETRY: Examples = {"checkpoint": {"summary": "From the newest valid checkpoint", "value": {"from": "checkpoint"}}}
FORK: Examples = {
    "longer": {
        "summary": "More steps at a lower rate",
        "value": {"overrides": {"name": "smol-longer", "training": {"max_steps": 2000, "learning_rate": 2e-6}}},
    }
}
PATCH: Examples = {
    "rename": {"summary": "Rename and relabel", "value": {"name": "smol-2", "metadata": {"team": "ads"}}}
}
