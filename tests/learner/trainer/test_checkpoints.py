"""The folder of checkpoints."""

from pathlib import Path

from turnwise_learner.trainer.checkpoints import CheckpointFolder


def test_what_a_killed_process_left_half_written_or_half_removed_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / ".aside-LATEST").write_text("step-1")
    (tmp_path / ".aside-step-000000001").mkdir()
    (tmp_path / ".aside-step-000000001" / "algorithm_state.pkl").write_bytes(b"half")
    (tmp_path / "LATEST").write_text("step-0")
    folder = CheckpointFolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["LATEST"]
    assert folder.latest_name() == "step-0"
