"""The database of ledger, keys and jobs: SQLite on a laptop, Postgres by address, migrated when it is opened."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

REVISION: Final = (
    "0006"  # the newest of infra/migrations/versions: an open that finds it loads no Alembic
)
BUSY_MS: Final = 20_000
ADVISORY_LOCK: Final = 0x61746C72  # "atlr": who migrates a Postgres database holds it

METADATA: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class DatabaseError(RuntimeError):
    """The database cannot be opened or used now; one line that says which and what to do."""


class Busy(DatabaseError):
    """Another process held the write lock for too long; the same call may be repeated."""


def open_engine(url: str) -> Engine:
    """Return an engine over a migrated database; safe to call from many processes at once.

    Raises:
        DatabaseError: an address that SQLAlchemy cannot use, a folder or server that is not there,
            or a database written by a newer version of the project.
    """
    try:
        address = sa.make_url(url)
        if address.drivername in {"postgres", "postgresql"}:  # as everybody writes it
            address = address.set(drivername="postgresql+psycopg")
        if address.get_backend_name() == "sqlite":
            _create_file(address)
        engine = sa.create_engine(address, **_options(address))
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise DatabaseError(f"cannot use the database address: {_line(error)}") from None
    if address.get_backend_name() == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    try:
        _migrate(engine, address)
    except DatabaseError:
        engine.dispose()
        raise
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Yield a connection on which every statement sees the newest commit."""
    try:
        with engine.connect() as connection:
            if engine.dialect.name != "sqlite":  # there no statement of ours begins one, see below
                connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection
    except sa.exc.SQLAlchemyError as error:
        raise _translate(error, engine.url) from error


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in a transaction that commits when the block ends well.

    On SQLite it holds the one write lock from its first moment, so that what it reads cannot change.

    Raises:
        Busy: that lock, or a row's on Postgres, was not free within 20 s.
    """
    try:
        with engine.connect() as connection:
            connection.execution_options(atelier_write=True)
            with connection.begin():
                if engine.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {BUSY_MS}")
                yield connection
    except sa.exc.SQLAlchemyError as error:
        raise _translate(error, engine.url) from error


def keeps(text: str) -> bool:
    """Return whether every database can keep a text: Postgres no NUL character, and none half of a surrogate pair.

    Nothing has a name that none keeps; to look for one there would be an error.
    """
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def take_turns(connection: Connection, lock: int) -> None:
    """Wait until no other transaction that takes turns under this number is open; on SQLite none that writes is."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def _options(address: URL) -> dict[str, Any]:
    if address.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_MS / 1000}, "pool_size": 4, "max_overflow": 60}
    return {"pool_pre_ping": True, "pool_timeout": 20, "connect_args": {"connect_timeout": 10}}


def _create_file(address: URL) -> None:
    """Make the SQLite file, readable by its owner alone: it knows who may call."""
    if not address.database or address.database == ":memory:":
        raise DatabaseError("the ledger needs a file: use sqlite:////absolute/path/atelier.db")
    path = Path(address.database)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise DatabaseError(f"cannot create the database {path}: {error.strerror}") from None


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we begin ourselves, see _begin_sqlite
    for pragma in (f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get("atelier_write"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(engine: Engine, address: URL) -> None:
    if _revision(engine) == REVISION:
        return
    if engine.dialect.name != "sqlite":
        with writing(engine) as connection:
            take_turns(connection, ADVISORY_LOCK)
            _upgrade(connection)
        return
    real = Path(str(address.database)).resolve()
    try:
        with (
            FileLock(real.with_name(f"{real.name}.lock"), timeout=60),
            writing(engine) as connection,
        ):
            _upgrade(connection)
    except Timeout as error:
        raise Busy(f"{real} is being migrated by another process ({error}); try again") from None


def _revision(engine: Engine) -> str | None:
    with reading(engine) as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        return None if found is None else str(found)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise DatabaseError(
            f"the database was written by another version of atelier: {_line(error)}; update atelier"
        ) from None


def _translate(error: sa.exc.SQLAlchemyError, address: URL) -> DatabaseError:
    where = address.render_as_string(hide_password=True)
    text = _line(getattr(error, "orig", None) or error)
    if isinstance(error, sa.exc.TimeoutError):
        return Busy(f"{where}: no free connection within 20 s; try again")
    waited = any(word in text for word in ("locked", "busy", "lock timeout"))
    if isinstance(error, sa.exc.OperationalError) and waited:
        return Busy(f"{where} was locked by another process for {BUSY_MS / 1000:g} s; try again")
    return DatabaseError(f"{where}: {text}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
