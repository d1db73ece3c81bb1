"""Tasks of a project."""

import asyncio

from django_tasks import task

done = []


@task
def add(first, second=1):
    done.append(first)
    return first + second


@task
async def add_later(first, second):
    await asyncio.sleep(0)
    return first + second


@task
def fail(words):
    raise LookupError(words)


@task
def fail_in_words_of_its_own():
    raise LookupError("a \0 and half a \ud83d")


@task
def give(number):
    done.append(number)
    return [float(number.strip("[]"))]


@task
def leave():
    raise SystemExit(3)


@task(takes_context=True)
def tell(context, word):
    return [word, context.attempt, context.task_result.id]


@task
def write(count):
    return "x" * count


@task
def give_a_set():
    return {1}


@task(queue_name="slow", priority=7)
def declared():
    return None


def ordinary():
    return None
