"""Deploy: make Ray Serve hold what the ledger names; safe to run twice, and after anything was lost."""

from prefect import flow

from flows import progress
from flows.context import ledger
from flows.promotion.release import load_versions, project_aliases, serve_wanted
from infra.registry.registry import RegistryError, Unreachable


@flow
def deploy() -> list[str]:
    """Serve what the ledger names; returns the pipeline versions that are loaded."""
    loaded = serve_wanted()
    for name in {row.name for row in ledger().heads()}:
        try:
            project_aliases(name)
        except Unreachable:
            raise
        except RegistryError as error:  # deleted in MLflow: the others' aliases follow all the same
            progress.say(f"the aliases of {name} do not follow the ledger: {error}")
    return loaded


__all__ = ["deploy", "load_versions", "project_aliases", "serve_wanted"]
