"""The report of runs: ``python -m experiments.report RUNS``.

``command`` is the command. ``columns`` sorts runs into tables, ``stats`` has the
statistics, ``published`` the figures and claims that runs are held against. ``text``
and ``figures`` are what stands in a report; ``page`` turns it into Markdown and HTML,
``tables`` into JSON and CSV.
"""
