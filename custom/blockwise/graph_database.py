"""The graph of a run's fragments in volara's databases: SQLite in a file, or PostgreSQL."""

import base64
import os
import re
import sqlite3
import uuid
from array import array
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psycopg2
from funlib.persistence.graphs import PgSQLGraphDatabase, SQLiteGraphDataBase
from funlib.persistence.graphs.sql_graph_database import SQLGraphDataBase
from numpy.typing import NDArray
from pydantic import Field
from volara.dbs import PostgreSQL, SQLite

from custom.errors import InputError
from custom.files import write_atomically
from custom.json_fields import check_keys
from custom.segmentation.region_graph import RegionGraph

NODE_ATTRIBUTES: dict[str, str | int] = {"affinity": "float", "is_open": "bool"}
EDGE_ATTRIBUTES: dict[str, str | int] = {"contacts": "int", "agreed": "int", "links": "str"}
DATABASE_KEYS = ("host", "port", "name", "user", "password_env")
OWNER_FILE = "graph_owner.txt"
OWNER_TABLE = "emseg_owner"
LOCK_TIMEOUT_MS = 600_000  # a worker waits this long for others that write to the file
CONNECT_TIMEOUT_S = "10"


class SqliteGraph(SQLite):
    """A graph in a file of the run's own state."""

    node_attrs: dict[str, str | int] | None = NODE_ATTRIBUTES
    edge_attrs: dict[str, str | int] | None = EDGE_ATTRIBUTES

    def open(self, mode: str = "r") -> SQLiteGraphDataBase:
        """The database; workers wait for each other's writes.

        Raises:
            InputError: the disk does not take it.
        """
        try:
            database = super().open(mode)
        except sqlite3.OperationalError as error:
            raise InputError(
                f"file '{self.path}' cannot be written ({error}): make room, or choose another "
                "output_dir; the same command goes on from what is there"
            ) from error
        database.con.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT_MS}")
        return database

    @property
    def place(self) -> list[Any]:
        """Where it is, plain values: a graph elsewhere lacks what was written here."""
        return ["file"]

    def claim(self) -> None:
        """Nothing: the file lies in the run's folder."""

    def release(self, database: SQLGraphDataBase) -> None:
        """Nothing: only its own thread may close a connection, which it does at its end."""


class PostgresGraph(PostgreSQL):
    """A graph in a PostgreSQL database that belongs to one run and volume alone.

    Args:
        password_env: environment variable with the password, for every process that connects.
        owner: the run's own mark, which lies in the database, too.
    """

    node_attrs: dict[str, str | int] | None = NODE_ATTRIBUTES
    edge_attrs: dict[str, str | int] | None = EDGE_ATTRIBUTES
    password_env: str | None = None
    owner: str

    def open(self, mode: str = "r") -> PgSQLGraphDatabase:
        """The database.

        Raises:
            InputError: it cannot be reached.
        """
        with self._errors_in_a_sentence():
            known = self.model_copy(update={"password": self._password()})
            return PostgreSQL.open(known, mode)

    @property
    def place(self) -> list[Any]:
        """As of ``SqliteGraph``."""
        return [self.host, self.port or 5432, self.name]

    def claim(self) -> None:
        """Make the database this run's, where it is nobody's.

        Raises:
            InputError: it cannot be reached, or it holds something else.
        """
        with self._errors_in_a_sentence():
            self._create()
            with closing(self._connect(self.name)) as connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
                )
                tables = [name for (name,) in cursor.fetchall()]
                if OWNER_TABLE not in tables and not tables:
                    cursor.execute(f"CREATE TABLE {OWNER_TABLE} (run VARCHAR)")
                    cursor.execute(f"INSERT INTO {OWNER_TABLE} VALUES (%s)", (self.owner,))
                    connection.commit()
                    return
                self._refuse_others(cursor, tables)

    def release(self, database: SQLGraphDataBase) -> None:
        """Close a connection, which would keep others from dropping tables."""
        assert isinstance(database, PgSQLGraphDatabase)
        database.close()

    def _refuse_others(self, cursor: Any, tables: list[str]) -> None:
        if OWNER_TABLE not in tables:
            holds = f"tables that are not of this project ({', '.join(sorted(tables)[:3])})"
        else:
            cursor.execute(f"SELECT run FROM {OWNER_TABLE}")
            if cursor.fetchone() == (self.owner,):
                return
            holds = "the graph of another run"
        raise InputError(
            f"database '{self.name}' on {self.host} holds {holds}: give database another name, or "
            f"drop it yourself if nobody needs it."
        )

    def _create(self) -> None:
        """Create the database where it is missing."""
        with closing(self._connect("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (self.name,))
            if cursor.fetchone() is None:
                connection.rollback()
                connection.autocommit = True
                cursor.execute(f"CREATE DATABASE {self.name}")

    def _connect(self, name: str) -> Any:
        return psycopg2.connect(
            host=self.host,
            port=self.port,
            dbname=name,
            user=self.user,
            password=self._password(),
            connect_timeout=CONNECT_TIMEOUT_S,
        )

    def _password(self) -> str | None:
        if self.password_env is None:
            return None
        if self.password_env not in os.environ:
            raise InputError(
                f"database.password_env names the environment variable {self.password_env}, which "
                f"is not set: set it to the password."
            )
        return os.environ[self.password_env]

    @contextmanager
    def _errors_in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except (psycopg2.OperationalError, psycopg2.ProgrammingError) as error:
            said = " ".join(str(error).split())
            where = f"'{self.name}' on {self.host}, port {self.port or 5432}"
            raise InputError(
                f"database {where} cannot be used: {said}; check database.host, port, user and "
                f"password_env, or leave database out to keep the graph in a file."
            ) from error


Graph = Annotated[SqliteGraph | PostgresGraph, Field(discriminator="db_type")]


def graph_of(database: Mapping[str, Any] | None, state_dir: Path, volume: str) -> Graph:
    """Where the graph of a volume lies; another run's is refused.

    Args:
        database: None: a file in ``state_dir``; else of a PostgreSQL server ``host``, ``name`` and
            where needed ``port``, ``user`` and ``password_env``. Every volume has a database of its
            own there: ``<name>_<volume>``, where _ stands for other characters than a to z, 0 to 9
            and _, and eight characters of a sha256 follow a volume that has any.
        state_dir: folder of the run's state.
        volume: id of the volume.

    Raises:
        InputError: a key is unknown, or the database cannot be used.
    """
    if database is None:
        return SqliteGraph(path=state_dir / "graph.db")
    check_keys(database, DATABASE_KEYS, "a key of database")
    settings = {"host": "localhost", "name": "emseg", **database}
    name = f"{_plain(str(settings['name']))}_{_distinct(volume)}"
    if not re.match("[a-z_]", name) or len(name) > 63:
        raise InputError(
            f"database.name and the volume's id give the name '{name}' of a database, which must "
            f"begin with a letter and have at most 63 characters: change database.name."
        )
    graph = PostgresGraph(**{**settings, "name": name}, owner=_owner(state_dir))
    graph.claim()
    return graph


def _plain(name: str) -> str:
    """The name with nothing but what the name of a database may have."""
    return re.sub(r"[^a-z0-9_]+", "_", name.lower())


def _distinct(volume: str) -> str:
    """The id where a database may have it, else a name that no other id gives."""
    plain = _plain(volume)
    return plain if plain == volume else f"{plain}_{sha256(volume.encode()).hexdigest()[:8]}"


def _owner(state_dir: Path) -> str:
    """The run's mark, made when it is first needed."""
    path = state_dir / OWNER_FILE
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex.encode())
    return path.read_text().strip()


def write_nodes(database: SQLGraphDataBase, nodes: RegionGraph, positions: NDArray[Any]) -> None:
    """Write fragments; those that are there stay as they are.

    Args:
        database: open for writing.
        nodes: a graph without edges.
        positions: (N, 3) centres, voxels, zyx.
    """
    columns = (nodes.ids, positions, nodes.sizes, nodes.affinities, nodes.open)
    names = ("position", "size", "affinity", "is_open")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    database.write_nodes({id_: dict(zip(names, row, strict=True)) for id_, *row in rows})


def write_edges(database: SQLGraphDataBase, graph: RegionGraph) -> None:
    """Write edges; those that are there stay as they are.

    Rows go to funlib's own query, for its loop over dictionaries takes three times as long.

    Args:
        database: open for writing.
        graph: of which only ids and edges are looked at.
    """
    rows = [
        (low, high, contacts, agreed, _encoded(graph.levels[begin:end], graph.counts[begin:end]))
        for (low, high), contacts, agreed, begin, end in zip(
            graph.ids[graph.edges].tolist(),
            graph.contacts.tolist(),
            graph.agreed.tolist(),
            graph.starts[:-1].tolist(),
            graph.starts[1:].tolist(),
            strict=True,
        )
    ]
    columns = [*database.endpoint_names, *EDGE_ATTRIBUTES]
    database._insert_query(database.edges_table_name, columns, rows)


def read_graph(database: SQLGraphDataBase) -> RegionGraph:
    """The whole graph, whose edges' ends must be among its nodes.

    Rows are read by funlib's own query, for its lists of dictionaries take ten times the memory.

    Args:
        database: open for reading.
    """
    nodes = np.array(
        list(_rows(database, database.nodes_table_name, "id", "size", *NODE_ATTRIBUTES)),
        dtype=[("id", "u8"), ("size", "i8"), ("affinity", "f8"), ("is_open", "?")],
    )
    numbers, levels, counts = array("q"), bytearray(), bytearray()
    columns = (*database.endpoint_names, *EDGE_ATTRIBUTES)
    for *whole, links in _rows(database, database.edges_table_name, *columns):
        content = base64.b64decode(links)
        length = len(content) // 5
        numbers.extend((*whole, length))
        levels += content[:length]
        counts += content[length:]
    low, high, contacts, agreed, lengths = np.frombuffer(numbers, np.int64).reshape(-1, 5).T
    places = found_at(nodes["id"], np.stack([low, high], axis=1).astype(np.uint64))
    return RegionGraph(
        nodes["id"].copy(),
        nodes["size"].copy(),
        nodes["affinity"].copy(),
        nodes["is_open"].copy(),
        places.astype(np.int64),
        contacts.copy(),
        agreed.copy(),
        np.append(0, np.cumsum(lengths)),
        np.frombuffer(levels, np.uint8),
        np.frombuffer(counts, "<u4").astype(np.int64),
    )


def found_at(ids: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Places of ids among others.

    Args:
        ids: ascending.
        wanted: of any shape.

    Raises:
        InputError: one is not among them.
    """
    places = np.searchsorted(ids, wanted)
    missing = np.append(ids, 0)[places] != wanted
    if missing.any():
        raise InputError(
            f"the graph of fragments lacks fragment {wanted[missing][0]}: fragments and graph are "
            f"not of one run; remove the folder <id>.blocks, or choose another output_dir"
        )
    return places


def _rows(database: SQLGraphDataBase, table: str, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Rows of a table in ascending order."""
    names = ", ".join(columns)
    order = ", ".join(columns[: 2 if table == database.edges_table_name else 1])
    yield from database._select_query(f"SELECT {names} FROM {table} ORDER BY {order}")


def _encoded(levels: NDArray[np.uint8], counts: NDArray[np.int64]) -> str:
    """A histogram as text: its levels, a byte each, and its counts, four bytes each."""
    return base64.b64encode(levels.tobytes() + counts.astype("<u4").tobytes()).decode()
