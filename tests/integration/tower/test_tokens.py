"""Two connections to the database that PostgreSQL has: a token that is made while its maker is revoked."""

from __future__ import annotations

import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.tower.test_retention import PSQL

pytestmark = pytest.mark.stack

WAIT = 20  # seconds until the deletion waits for the other connection


def test_a_token_that_is_made_while_its_maker_is_revoked_ends_with_it(stack, container):
    inside = ["docker", "exec", "-i", container("postgresql").id, *PSQL]

    def sql(statement: str) -> str:
        done = subprocess.run(inside, input=statement, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    mark = uuid.uuid4().hex
    token = stack.post("/tokens/", {"description": "maker"})["id"]
    maker = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        # As the API makes one, and the commit comes when the deletion has begun.
        maker.stdin.write(f"""
            BEGIN;
            SELECT id FROM auth_user WHERE id = (SELECT user_id FROM carillon_apitoken WHERE id = {token})
                FOR NO KEY UPDATE;
            INSERT INTO carillon_apitoken (user_id, digest, description, scope, created, parent_id)
                SELECT user_id, '{mark}', '', scope, now(), id FROM carillon_apitoken WHERE id = {token};
            SELECT 'pid ' || pg_backend_pid();
        """)
        maker.stdin.flush()
        pid = next(line for line in maker.stdout if line.startswith("pid ")).removeprefix("pid ").strip()
        with ThreadPoolExecutor(1) as others:
            revoked = others.submit(stack.api, "DELETE", f"/tokens/{token}/")
            deadline = time.monotonic() + WAIT
            while (
                sql(f"SELECT count(*) FROM pg_stat_activity WHERE {pid} = ANY(pg_blocking_pids(pid))") == "0"
            ):
                assert time.monotonic() < deadline, "the deletion waits for nobody"
                time.sleep(0.05)
            maker.communicate("COMMIT;\n", timeout=20)
            assert revoked.result().status_code == 204
    finally:
        maker.kill()
    assert sql(f"SELECT count(*) FROM carillon_apitoken WHERE id = {token} OR digest = '{mark}'") == "0"
