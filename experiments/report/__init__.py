"""The report of runs: ``python -m experiments.report RUNS``.

``command`` is the command, ``text`` and ``figures`` are what stands in a report,
``page`` turns it into Markdown and HTML, ``tables`` into JSON and CSV; ``published``
has the figures and claims that runs are held against, ``stats`` the statistics.
"""
