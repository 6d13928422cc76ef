"""Specs from YAML: values mean what they say, and faults name the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm import SpecError
from minillm.specfile import local_files, read_spec, with_files


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return path


class TestRead:
    def test_values_are_what_they_look_like(self, tmp_path: Path) -> None:
        spec = read_spec(
            write(
                tmp_path,
                "training: {learning_rate: 5e-6, max_steps: 10, activation_checkpointing: true, student_sft: null}\n"
                "method: {whitening: off, type: minillm}\n"
                "metadata: {date: 2026-01-31, answer: no, version: '1.0'}\n",
            )
        )
        assert spec["training"] == {
            "learning_rate": 5e-6,
            "max_steps": 10,
            "activation_checkpointing": True,
            "student_sft": None,
        }
        assert spec["method"]["whitening"] == "off"
        assert spec["metadata"] == {"date": "2026-01-31", "answer": "no", "version": "1.0"}

    def test_json_is_read_too(self, tmp_path: Path) -> None:
        assert read_spec(write(tmp_path, '{"seed": 7, "training": {"learning_rate": 1E-5}}')) == {
            "seed": 7,
            "training": {"learning_rate": 1e-5},
        }

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("seed: 1\nseed: 2\n", "line 2: seed is given twice"),
            ("seed: [1\n", "line 2"),
            ("- seed\n", "no fields"),
            ("", "no fields"),
            ("5: x\n", "no name of a field"),
            ("a: !!python/object:os.system {}\n", "line 1"),
            ("a: \x07\n", "not YAML"),
        ],
    )
    def test_what_is_no_spec(self, tmp_path: Path, text: str, reason: str) -> None:
        with pytest.raises(SpecError, match=reason):
            read_spec(write(tmp_path, text))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="no such file"):
            read_spec(tmp_path / "absent.yaml")

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "spec.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(SpecError, match="cannot read"):
            read_spec(tmp_path / "spec.yaml")


class TestLocalFiles:
    def test_paths_beside_the_spec_are_found_and_ids_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text("{}")
        spec = {"dataset": {"file": "rows.jsonl"}, "pretrain_corpus": {"file": "file_abc"}}
        found = local_files(spec, tmp_path)
        assert found == {"dataset.file": tmp_path / "rows.jsonl"}
        filled = with_files(spec, {"dataset.file": "file_new"})
        assert filled["dataset"] == {"file": "file_new"}
        assert spec["dataset"] == {"file": "rows.jsonl"}

    def test_a_path_seen_from_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "rows.jsonl").write_text("{}")
        monkeypatch.chdir(tmp_path)
        assert local_files({"dataset": {"file": "rows.jsonl"}}, tmp_path / "elsewhere")

    def test_the_services_own_paths_are_left_alone(self, tmp_path: Path) -> None:
        assert local_files({"dataset": {"file": "path:rows.jsonl"}}, tmp_path) == {}

    def test_a_missing_file_names_the_field(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match=r"dataset\.file: no such file: rows\.jsonl") as caught:
            local_files({"dataset": {"file": "rows.jsonl"}}, tmp_path)
        assert caught.value.field == "dataset.file"

    def test_sections_of_a_wrong_kind_are_the_services_to_refuse(self, tmp_path: Path) -> None:
        assert local_files({"dataset": "rows.jsonl", "evaluation": None}, tmp_path) == {}
