"""Run Autobahn's cases against a server, in the environment of
locks/autobahn.txt: `cases.py URL CASES WITHOUT`, two lists in JSON.

Prints, as JSON, what became of each: its number, the verdicts on its messages and on its end, and why.
"""

import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient


async def main(url, cases, without):
    try:
        results = await run_fuzzingclient(url, json.loads(cases), json.loads(without))
    except FailureError as failure:
        results = failure.results
    print(json.dumps([
        {
            "case": each.case_id, "behavior": each.behavior.value, "close": each.behavior_close.value,
            "passed": each.passed, "why": f"{each.result} {each.result_close}", "milliseconds": each.duration,
        }
        for each in results
    ]))  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    sys.stdout.flush()
    os._exit(0)  # all is told; threads of kosoku that outlive it may abort a Python that ends
