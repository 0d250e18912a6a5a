"""One HTML file that needs nothing else: tables that sort on a click, figures inside."""

from __future__ import annotations

import base64

from jinja2 import Environment

from lorax.reports.text.document import Document
from lorax.reports.text.verdicts import kind

_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ document.name }}</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 75rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #444; } th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0072B2; } th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td.better { color: #00674a; font-weight: 600; } td.worse { color: #a84300; font-weight: 600; }
td.equivalent { color: #005a91; font-weight: 600; } td.undecided { color: #666; }
ul { padding-left: 1.2rem; } figure { margin: 1rem 0 2rem; } figure img { max-width: 100%; height: auto; }
figcaption, .small { color: #555; font-size: .85rem; }
</style></head><body>
<h1>{{ document.name }}</h1>
{% if document.question %}<p>{{ document.question }}</p>{% endif %}
{% for part in document.parts %}
{% if part.title %}
<h2>{{ part.title }}</h2>
{% endif %}
{% if part.lines %}<ul>{% for line in part.lines %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% for table in part.tables %}
{% if table.title %}<h3>{{ table.title }}</h3>{% endif %}
<div class="wide"><table><thead><tr>
{% for name in table.head %}<th scope="col"><button type="button">{{ name }}</button></th>{% endfor %}
</tr></thead><tbody>
{% for line in table.body %}
<tr>{% for cell in line %}<td{% if kind(cell) %} class="{{ kind(cell) }}"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
{% for fig in part.pictures %}
<figure><img alt="{{ fig.caption }}" src="{{ data_uri(fig.svg) }}"><figcaption>{{ fig.caption }}</figcaption></figure>
{% endfor %}
{% endfor %}
<script>
// Sort by the first number of a cell, else by its text; a second click turns the order round.
const key = cell => {
  const text = cell.textContent.trim();
  const found = text.replace(/[,[≥]/g, "").match(/^[-+]?\\d*\\.?\\d+(e[-+]?\\d+)?/i);
  return text === "-" ? null : found ? parseFloat(found[0]) : text.toLowerCase();
};
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.closest("th"), body = head.closest("table").tBodies[0];
  const place = [...head.parentNode.children].indexOf(head);
  const down = head.getAttribute("aria-sort") !== "descending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].map(row => [key(row.cells[place]), row]);
  rows.sort(([a], [b]) => a === null ? 1 : b === null ? -1 :
    (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1) * (down ? -1 : 1));
  rows.forEach(([, row]) => body.append(row));
}));
</script>
</body></html>
""")


def render(document: Document) -> str:
    """Return the document as one page; every text is escaped, nothing is loaded from elsewhere."""
    return _PAGE.render(document=document, kind=kind, data_uri=_data_uri)


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
