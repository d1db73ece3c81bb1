"""`carillon prune` on the database that PostgreSQL has: beside others, cut off, and without it."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from carillon.locks import PRUNE as LOCK
from carillon.process.launcher import EXIT_NOT_READY

pytestmark = pytest.mark.stack

JOBS = 1200
EVENTS = 8


@pytest.fixture
def sql(container) -> Callable[[str], str]:
    inside = container("postgresql").id

    def run(statements: str) -> str:
        done = subprocess.run(
            ["docker", "exec", "-i", inside, *PSQL], input=statements, capture_output=True, text=True,
            timeout=60, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    run.inside = inside
    return run


PSQL = (
    *("psql", "--quiet", "--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"),
    *("--host=/run/postgresql", "--username=postgres", "carillon"),
)


@pytest.fixture
def name(sql) -> Iterator[str]:
    """Of the jobs of this test, which no other test sees."""
    name = f"retention {uuid.uuid4()}"
    yield name
    sql(
        f"DELETE FROM tower_jobevent USING tower_job j WHERE job_id = j.id AND j.name = '{name}';"
        f"DELETE FROM tower_job WHERE name = '{name}';"
    )


@pytest.fixture
def fill(sql, name) -> Callable[..., None]:
    """Jobs that finished so many days ago, each with events."""

    def run(count: int, days: int, status: str = "successful", events: int = EVENTS) -> None:
        finished = f"now() - interval '{days} days'" if status == "successful" else "NULL"
        sql(f"""
            WITH jobs AS (
                INSERT INTO tower_job (name, kind, status, owner_id, created, modified, finished)
                SELECT '{name}', 'job', '{status}', (SELECT min(id) FROM auth_user),
                    now() - interval '{days} days', now(), {finished}
                FROM generate_series(1, {count}) RETURNING id)
            INSERT INTO tower_jobevent (job_id, counter, event, uuid, parent_uuid, stdout, start_line,
                end_line, event_data, failed, changed, event_level, play, role, task, created, modified)
            SELECT id, n, 'x', '', '', 'line', 0, 0, '{{}}', false, false, 0, '', '', '', now(), now()
            FROM jobs, generate_series(1, {events}) AS n""")

    return run


@pytest.fixture
def left(sql, name) -> Callable[[], int]:
    return lambda: int(sql(f"SELECT count(*) FROM tower_job WHERE name = '{name}'"))


@pytest.fixture
def begin(container) -> Callable[..., subprocess.Popen]:
    """`carillon prune` in a container; `variables` of its environment beside."""
    inside = container("uwsgi").id

    def run(*arguments: str, prefix: tuple[str, ...] = (), **variables: str) -> subprocess.Popen:
        more = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
        command = ["docker", "exec", *more, inside, *prefix, "carillon", "prune", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


@pytest.fixture
def prune(begin) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str, **options) -> tuple[int, str, str]:
        return ended(begin(*arguments, **options))

    return run


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, the line about jobs, and what was said."""
    out, err = process.communicate(timeout=120)
    return process.returncode, next((line for line in out.splitlines() if line.startswith("jobs")), ""), err


@contextmanager
def transaction(sql, statement: str) -> Iterator[None]:
    """Another session, in a transaction that lasts as long as the block."""
    mark = uuid.uuid4().hex
    held = subprocess.Popen(
        ["docker", "exec", "-i", sql.inside, *PSQL],
        stdin=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    held.stdin.write(f"BEGIN; {statement}; SET application_name = '{mark}';\n")
    held.stdin.flush()
    try:
        wait(lambda: sql(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{mark}'") == "1")
        yield
    finally:
        held.communicate("ROLLBACK;\n", timeout=20)


def wait(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_old_goes_and_what_is_active_or_young_stays(fill, left, prune, sql, name):
    fill(150, 200)
    fill(2, 200, "running")
    fill(3, 10)
    code, line, _ = prune("--dry-run")
    assert (code, left()) == (0, 155)
    assert line.startswith("jobs: 150 jobs would be deleted")
    assert prune("--check", "1")[0] == 1
    code, line, said = prune()
    assert code == 0, said
    assert line.startswith(f"jobs: 150 jobs, {150 * EVENTS} job events deleted")
    assert sql(f"SELECT status, count(*) FROM tower_job WHERE name = '{name}' GROUP BY 1 ORDER BY 1") == (
        "running|2\nsuccessful|3"
    )
    assert prune("--check", "1")[0] == 0


def test_two_at_once(fill, left, begin):
    fill(JOBS, 200)
    both = [ended(process) for process in [begin(), begin()]]
    assert [code for code, _, _ in both] == [0, 0], both
    assert left() == 0
    lines = [line for _, line, _ in both]
    assert sum(line.endswith("another run is at it") for line in lines) <= 1
    counts = [int(line.split()[1]) for line in lines if " jobs, " in line]
    assert sum(counts) == JOBS


def test_while_another_run_deletes_this_one_ends(fill, left, prune, sql):
    fill(3, 200)
    with transaction(sql, f"SELECT pg_advisory_xact_lock({LOCK})"):
        code, line, _ = prune()
        assert (code, left()) == (0, 3)
        assert line.endswith("another run is at it")
    assert prune()[1].startswith("jobs: 3 jobs")


def test_a_job_that_somebody_holds_is_left_for_the_next_run(fill, left, prune, sql, name):
    fill(5, 200)
    one = f"SELECT id FROM tower_job WHERE name = '{name}' ORDER BY id LIMIT 1 FOR NO KEY UPDATE"
    with transaction(sql, one):
        code, line, _ = prune()
        assert (code, left()) == (0, 1)
        assert line.startswith("jobs: 4 jobs")
    assert prune()[1].startswith("jobs: 1 jobs")


def test_killed_half_way_the_next_run_goes_on(fill, left, begin, prune, sql, name):
    fill(JOBS, 200)
    process = begin(prefix=("sh", "-c", 'echo $$; exec "$@"', "-"))
    pid = int(process.stdout.readline())
    wait(lambda: left() < JOBS)
    subprocess.run(["docker", "exec", process.args[2], "sh", "-c", f"kill -9 {pid}"], check=True)
    process.communicate(timeout=30)
    assert process.returncode == 128 + 9
    assert 0 < left() < JOBS
    assert prune()[0] == 0
    assert left() == 0


def test_a_database_that_goes_away_half_way(fill, left, begin, prune, sql):
    fill(JOBS, 200)
    process = begin()
    wait(lambda: left() < JOBS)
    ends = f"""SELECT count(pg_terminate_backend(pid)) FROM pg_locks
        WHERE locktype = 'advisory' AND objid = {LOCK} AND granted"""
    wait(lambda: sql(ends) != "0")
    code, line, said = ended(process)
    assert code == EXIT_NOT_READY
    assert "carillon: the database: " in said
    assert "Traceback" not in said
    assert line.startswith("jobs: ")
    assert 0 < left() < JOBS
    assert prune()[0] == 0
    assert left() == 0


def test_without_a_database_or_a_broker(fill, left, prune):
    fill(3, 200)
    code, line, said = prune(CARILLON_DATABASE_HOST="127.0.0.1")
    assert (code, line) == (EXIT_NOT_READY, "")
    assert "carillon: the database: " in said
    assert left() == 3
    code, line, said = prune(CARILLON_AMQP_HOSTS="127.0.0.1")
    assert code == EXIT_NOT_READY
    assert "carillon: the broker: " in said
    assert "Traceback" not in said
    assert line.startswith("jobs: 3 jobs")


def test_a_run_has_a_most(fill, left, prune):
    fill(JOBS, 200)
    code, line, _ = prune("--rows", "1000")
    assert code == 0
    assert line.endswith("its 1000 rows are deleted")
    assert 0 < left() < JOBS
    assert prune()[0] == 0
    assert left() == 0
