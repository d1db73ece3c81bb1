"""A backend of `django_tasks` (in Django 6.0 `django.tasks`): tasks are rows, and durable messages wake who
runs them. An app of its own; how it is used is in docs/how-to/tasks.md.

- A task exists exactly when the transaction that enqueued it has committed: it is a row of that transaction.
- Each row is announced by a message on a durable channel. A message names no task: whoever gets one takes the
  task that is most urgent. So priorities hold among all that wait, and a message too many does no harm.
- Who runs a task says every few seconds that it does. A task of which nobody has said so for `LEASE` seconds
  is somebody else's. So what a broker or a worker has lost is run all the same, and a task may run twice.
"""
