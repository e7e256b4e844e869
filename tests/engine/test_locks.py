"""One process for a folder: the second is told so and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune import EdgePruneError
from edgeprune.engine import serve
from edgeprune.engine.config import load_experiment
from edgeprune.engine.kits import EXPERIMENT, prepare_folder
from edgeprune.engine.locks import alone


def test_a_folder_is_free_again_after_its_holder(tmp_path: Path) -> None:
    with alone(tmp_path, "taken"), pytest.raises(EdgePruneError, match="^taken$"), alone(tmp_path, "taken"):
        pass
    with alone(tmp_path, "taken"):
        pass


def test_kits_are_not_made_again_beneath_a_server_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "check_engine", lambda engine: None)
    service = serve.Service(tmp_path / "run", "flower", "127.0.0.1:9092", None, 1.0, False)
    own = service.federation
    prepare_folder(own)
    (own.private / EXPERIMENT).write_text("the first one's")
    with alone(own.folder, "taken"), pytest.raises(EdgePruneError, match="another 'edgeprune serve' works there"):
        serve.make_kits(service, load_experiment(None), print)
    assert (own.private / EXPERIMENT).read_text() == "the first one's"
