"""Deploy: make Ray Serve hold what the ledger names; safe to run twice, and after anything was lost."""

from prefect import flow

from flows.context import ledger
from flows.promotion.release import load_versions, project_aliases, serve_wanted


@flow
def deploy() -> list[str]:
    """Serve what the ledger names; returns the pipeline versions that are loaded."""
    loaded = serve_wanted()
    for name in {row.name for row in ledger().heads()}:
        project_aliases(name)
    return loaded


__all__ = ["deploy", "load_versions", "project_aliases", "serve_wanted"]
