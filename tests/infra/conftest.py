import shutil
from pathlib import Path

import pytest

from infra.ledger import Ledger


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh database, for tests that need many: a copy costs less than a migration."""
    path = tmp_path_factory.mktemp("ledger") / "atelier.db"
    Ledger(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def path(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "atelier.db"))
