"""Rows of a measurement as lines, tables and plots."""


def _short(value):
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def line(row):
    """One row for the terminal."""
    head = f"{row['workload']:13} {row['way']:6} {row['kind']:18}"
    return f"{head} {_short({key: row[key] for key in row if key not in ('workload', 'way', 'kind')})}"


def write(source, folder):
    raise NotImplementedError
