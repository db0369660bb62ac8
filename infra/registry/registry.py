"""Model versions and runs on MLflow: sealed directories go in, verified ones come out, and no pickle passes.

A version is an MLflow model version; its bytes are a LoggedModel's artifacts, its digest is the sha256 of their
MANIFEST.json. MLflow's client repeats a POST whose answer was lost, so whatever is created carries a key as a tag,
is searched for before it is created, and is reduced to the first of its key afterwards.
"""

import difflib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from infra.documents import read_json
from infra.registry.mlflow_client import KEY, Mlflow, RegistryError, Unreachable, pages, require
from infra.registry.runs import Runs, Status, folder_of
from infra.registry.versions import (
    DIGEST,
    NAME,
    PUBLISHABLE,
    Version,
    as_version,
    by_digest,
    by_key,
    check_files,
    create_name,
    quoted,
    ranges,
    settled,
)
from infra.storage import MANIFEST, IntegrityError, faultpoint, read_manifest, sha256_of, verify

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

LINEAGE: Final = (
    *("run_id", "data_identity", "code_identity", "git_commit", "seed", "search"),
    *("base", "base_digest", "needs", "needs_digests"),
)
NAMED: Final = 8  # models that are named where one is asked for that there is not
_REF: Final = re.compile(r"(?P<name>[^:@]+)(:(?P<number>[1-9][0-9]{0,8})|@(?P<alias>[a-z]+))?")


class Registry(Runs):
    """MLflow at `uri` (a server's address or sqlite:///...), with verified copies of versions below `cache`."""

    def __init__(self, uri: str, cache: Path) -> None:
        super().__init__(Mlflow(uri))
        self._cache = cache
        self._verified: set[str] = set()

    def publish(
        self,
        name: str,
        directory: Path,
        *,
        key: str,
        tags: Mapping[str, str],
        run_id: str | None = None,
    ) -> Version:
        """Upload a sealed directory as the next version of `name`; the same key again returns the same version.

        Args:
            name: The model: a recipe, or `recipe.stage`.
            directory: Sealed by `infra.storage.seal`, whose facts give the kind and the lineage tags.
            key: Names this publication; search for it with `find` before doing the work again.
            tags: Further tags, e.g. `atelier.parents`.
            run_id: The MLflow run that made it.

        Raises:
            IntegrityError: the directory is not what its manifest says.
            RegistryError: a file that may not be published, a key that was used for other bytes, or MLflow's refusal.
            Unreachable: MLflow does not answer; call again with the same key.
        """
        require(NAME, "model name", name)
        require(KEY, "key", key)
        manifest = verify(directory)
        digest = sha256_of(directory / MANIFEST)
        check_files(name, manifest)
        lineage = {f"atelier.{fact}": str(manifest[fact]) for fact in LINEAGE if fact in manifest}
        ours = {"atelier.key": key, "atelier.digest": digest, "atelier.kind": str(manifest["kind"])}
        with self._mlflow.calling() as client:
            if found := settled(client, name, key, digest):
                return found
            create_name(client, name)
            faultpoint("registry.named")
            logged = self._log(client, name, directory, {**lineage, **tags, **ours}, run_id)
            faultpoint("registry.logged")
            self._register(client, name, logged, {**lineage, **tags, **ours}, run_id)
            faultpoint("registry.registered")
            published = settled(client, name, key, digest)
        if published is None:
            raise RegistryError(f"{name} was published but is not listed; publish it again")
        return published

    def find(self, name: str, key: str) -> Version | None:
        """Return the version that was published under a key, or None."""
        require(KEY, "key", key)
        with self._mlflow.calling() as client:
            found = by_key(client, name, key)
        return as_version(found[0]) if found else None

    def by_digest(self, name: str, digest: str) -> Version | None:
        """Return the version of a name that has these bytes, whatever its number, or None.

        Args:
            name: The model, or a reference to a version of it, whose number is left aside.
            digest: The sha256 of its manifest.
        """
        with self._mlflow.calling() as client:
            found = by_digest(client, re.split("[:@]", name)[0], digest)
        return as_version(found[0]) if found else None

    def get(self, ref: str) -> Version:
        """Return a version by `name` (its newest), `name:3` or `name@staging`.

        Raises:
            RegistryError: no such name (the message lists near ones), version or alias.
        """
        match = _REF.fullmatch(ref)
        if match is None:
            raise RegistryError(f"{ref!r} names no version; write NAME, NAME:3 or NAME@staging")
        name, number, alias = match["name"], match["number"], match["alias"]
        with self._mlflow.calling() as client:
            if number:
                query = f"name = '{quoted(name)}' and version_number = {number}"
                found = list(client.search_model_versions(query, max_results=1))
            elif alias:
                found = self._by_alias(client, name, alias)
            else:
                newest = ["version_number DESC"]
                query = f"name = '{quoted(name)}'"
                found = list(client.search_model_versions(query, max_results=1, order_by=newest))
        if not found:
            raise RegistryError(self._unknown(name, ref))
        return as_version(found[0])

    def fetch(
        self, version: Version | str, number: int | None = None, *, digest: str | None = None
    ) -> Path:
        """Return a verified local directory of a version, downloaded once and then kept by digest.

        With `digest` (a pinned stage's, a ledger row's) a copy on this disk is served without asking MLflow, and
        the number counts only where no version has that digest: another installation numbers otherwise.

        Args:
            version: A Version, a reference as in `get`, or a name together with `number`.
            number: The version's number, where `version` is a name.
            digest: What it must be.

        Raises:
            RegistryError: no such version, or its digest is not `digest`.
            IntegrityError: what was downloaded is not what was published.
        """
        if isinstance(version, Version):
            digest = digest or version.digest
        if digest is not None and (kept := self._kept(digest)):
            return kept
        if isinstance(version, str):
            name = version if number is None else f"{version}:{number}"
            version = (digest and self.by_digest(name, digest)) or self.get(name)
        if digest is not None and version.digest != digest:
            raise RegistryError(
                f"{version.ref} has digest {version.digest[:12]}, but {digest[:12]} is pinned"
            )
        return self._kept(version.digest) or self._download(version)

    def keep(self, version: Version, directory: Path) -> None:
        """Keep a copy of what was just published, as `fetch` would: who reads it next need not ask MLflow."""
        kept = self._cache / version.digest
        if kept.is_dir():
            return
        with self._arriving(version.digest) as arriving:
            shutil.copytree(directory, arriving, dirs_exist_ok=True)
            with suppress(OSError):  # not empty: another process brought the same bytes
                arriving.rename(kept)

    def weights(self, directory: Path) -> list[Path]:
        """Return the folders of all weights of a fetched network: its own, after its base's where it is an adapter.

        Raises:
            RegistryError: the base is not there, or no version of its name has the digest that the adapter names.
            IntegrityError: as in `fetch`.
        """
        adapter = read_json(directory / "config.json").get("lora")
        if adapter is None:
            return [directory]
        return [self.fetch(adapter["base"], digest=adapter["digest"]), directory]

    def documents(self, version: Version, names: Sequence[str]) -> dict[str, Any]:
        """Return those JSON files that a version has of these, verified; its weights stay where they are.

        Raises:
            IntegrityError: what was downloaded is not what was published.
        """
        if kept := self._kept(version.digest):
            return {name: read_json(kept / name) for name in names if (kept / name).is_file()}
        with (
            tempfile.TemporaryDirectory(prefix="atelier-") as folder,
            self._mlflow.calling() as client,
        ):
            repository = self._store(client, version)
            path = Path(repository.download_artifacts(MANIFEST, folder))
            files = read_manifest(path, version.digest)["files"]
            found = {}
            for name in (name for name in names if name in files):
                path = Path(repository.download_artifacts(name, folder))
                if sha256_of(path) != files[name]["sha256"]:
                    raise IntegrityError(
                        f"{version.ref} is damaged in the store: {name} was altered"
                    )
                found[name] = read_json(path)
            return found

    def names(self) -> list[str]:
        """Return the names of all models: with a version, without one left, or without one yet."""
        with self._mlflow.calling() as client:
            return sorted(model.name for model in pages(client.search_registered_models))

    def versions(self, name: str) -> list[Version]:
        """Return every version of a name, oldest first; none where its first publication was cut off.

        Raises:
            RegistryError: the name is unknown; the message lists near ones.
        """
        found = self._listed(name)
        if not found and name not in (names := self.names()):
            raise RegistryError(no_such(name, names))
        return sorted((as_version(one) for one in found), key=lambda version: version.number)

    def project(self, name: str, aliases: Mapping[str, int]) -> None:
        """Make MLflow's aliases of a name equal to these (the ledger's heads); safe to repeat."""
        with self._mlflow.calling() as client:
            held = {
                alias: int(number)
                for alias, number in client.get_registered_model(name).aliases.items()
            }
            for alias in sorted(held.keys() - aliases.keys()):
                client.delete_registered_model_alias(name, alias)
            for alias, number in sorted(aliases.items()):
                if held.get(alias) != number:
                    client.set_registered_model_alias(name, alias, str(number))

    def describe(self, name: str, number: int, text: str) -> None:
        """Write what MLflow's page shows of a version; its files stay as they were published."""
        with self._mlflow.calling() as client:
            client.update_model_version(name, str(number), text)

    def place(self, version: Version) -> Path | None:
        """Return the folder of a version's bytes in the store; None where the store is elsewhere."""
        with self._mlflow.calling() as client:
            source = client.get_model_version_download_uri(version.name, str(version.number))
        return folder_of(source)

    def remove(self, version: Version) -> None:
        """Delete a version and its bytes in the store; its run stays. Safe to repeat."""
        with self._mlflow.calling() as client:
            source = client.get_model_version_download_uri(version.name, str(version.number))
            client.delete_model_version(version.name, str(version.number))
            self._clear(source)
            if model_id := version.tags.get("atelier.model_id"):
                client.delete_logged_model(model_id)
        self._verified.discard(version.digest)

    def _log(
        self,
        client: "MlflowClient",
        name: str,
        directory: Path,
        tags: Mapping[str, str],
        run_id: str | None,
    ) -> "LoggedModel":
        """Upload the files as a LoggedModel; one that an interrupted publication finished is taken."""
        where = (
            client.get_run(run_id).info.experiment_id
            if run_id
            else self.experiment(client, name.partition(".")[0])
        )
        query = " and ".join(
            f"tags.`{tag}` = '{tags[tag]}'" for tag in ("atelier.key", "atelier.digest")
        )
        for earlier in client.search_logged_models([where], query):
            if earlier.status == "READY":
                return earlier
        logged = client.create_logged_model(
            where,
            name=name.replace(".", "-"),
            source_run_id=run_id,
            tags=dict(tags),
            model_type=tags["atelier.kind"],
        )
        client.log_model_artifacts(logged.model_id, str(directory))
        return client.finalize_logged_model(logged.model_id, "READY")

    def _register(
        self,
        client: "MlflowClient",
        name: str,
        logged: "LoggedModel",
        tags: Mapping[str, str],
        run_id: str | None,
    ) -> None:
        from mlflow.exceptions import MlflowException

        # a store in this process would look the model up at mlflow's global address, not at ours
        model_id = logged.model_id if self._mlflow.is_server or run_id else None
        try:
            client.create_model_version(
                name,
                logged.artifact_location,
                run_id=run_id,
                tags={**tags, "atelier.model_id": logged.model_id},
                await_creation_for=0,
                model_id=model_id,
            )
        except MlflowException:
            # the answer may be lost and the version there
            if not by_key(client, name, tags["atelier.key"]):
                raise

    def _kept(self, digest: str) -> Path | None:
        """Return the cached directory of a digest, verified once by this process; set a damaged one aside.

        Raises:
            RegistryError: it is no digest: a pipeline.json that somebody wrote may name another folder.
        """
        require(DIGEST, "sha256", digest)
        kept = self._cache / digest
        if digest in self._verified and kept.is_dir():
            return kept
        if not kept.is_dir():
            return None
        try:
            verify(kept, digest)
        except IntegrityError:
            with suppress(FileNotFoundError):  # another process set it aside
                kept.rename(self._cache / f"{digest}.damaged-{secrets.token_hex(4)}")
            return None
        self._verified.add(digest)
        return kept

    def _store(self, client: "MlflowClient", version: Version) -> Any:
        """Return MLflow's access to a version's files."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        source = client.get_model_version_download_uri(version.name, str(version.number))
        return get_artifact_repository(source, tracking_uri=self._mlflow.uri)

    def _download(self, version: Version) -> Path:
        kept = self._cache / version.digest
        with self._arriving(version.digest) as arriving:
            with self._mlflow.calling() as client:
                self._store(client, version).download_artifacts("", str(arriving))
            try:
                verify(arriving, version.digest)
            except IntegrityError as error:
                raise IntegrityError(f"{version.ref} is damaged in the store: {error}") from None
            faultpoint("registry.cache")
            try:
                arriving.rename(kept)
            except OSError:  # not empty: another process brought the same bytes
                verify(kept, version.digest)
        self._verified.add(version.digest)
        return kept

    @contextmanager
    def _arriving(self, digest: str) -> Iterator[Path]:
        """Yield a new folder in the cache, which goes unless it is renamed."""
        self._cache.mkdir(parents=True, exist_ok=True)
        arriving = self._cache / f"{digest}.tmp-{secrets.token_hex(4)}"
        arriving.mkdir()
        try:
            yield arriving
        finally:
            shutil.rmtree(arriving, ignore_errors=True)

    def _by_alias(self, client: "MlflowClient", name: str, alias: str) -> "list[ModelVersion]":
        models = pages(client.search_registered_models, f"name = '{quoted(name)}'")
        if not models:
            return []
        aliases = {str(key): str(value) for key, value in models[0].aliases.items()}
        if alias not in aliases:
            held = ", ".join(sorted(aliases)) or "none"
            raise RegistryError(f"{name} has no version at {alias!r} (it has: {held}); promote one")
        return [client.get_model_version(name, aliases[alias])]

    def _listed(self, name: str) -> "list[ModelVersion]":
        with self._mlflow.calling() as client:
            return pages(client.search_model_versions, f"name = '{quoted(name)}'")

    def _unknown(self, name: str, ref: str) -> str:
        names = self.names()
        if name not in names:
            return no_such(name, names)
        numbers = sorted(int(version.version) for version in self._listed(name))
        if not numbers:
            return f"{name} has no version: its publication was cut off, or all were deleted; publish it again"
        return f"{name} has no version {ref.rpartition(':')[2]}; it has {ranges(numbers)}"


def no_such(name: str, names: list[str]) -> str:
    """Return what to say of a name that no model has: the nearest ones, or some that there are."""
    if near := difflib.get_close_matches(name, names, n=3):
        return f"no model is called {name!r}; did you mean {', '.join(near)}?"
    whole = [one for one in names if "." not in one] or names  # stages are named behind a dot
    told = ", ".join(whole[:NAMED]) or "none yet"
    more = f" and {len(whole) - NAMED} more (atelier models)" if len(whole) > NAMED else ""
    return f"no model is called {name!r}; there are: {told}{more}"


__all__ = ["PUBLISHABLE", "Registry", "RegistryError", "Status", "Unreachable", "Version"]
