"""Numbers -> tables (Markdown, LaTeX, CSV, terminal), plots, one offline HTML page.

    run directories --records--> [RunRecord] --table--> Table --formats--> csv, md, tex, rich
                                      |                   |
                                      +------plots--------+--page--> report.html

`write` does all of it. Everything is computed again from what the runs left on disk; nothing here trains or decodes.
"""

from research.reports.formats import to_csv, to_latex, to_markdown, to_rich
from research.reports.records import RunRecord, load_run, load_runs
from research.reports.table import Table, build
from research.reports.write import write

__all__ = ["RunRecord", "Table", "build", "load_run", "load_runs", "to_csv", "to_latex", "to_markdown", "to_rich", "write"]
