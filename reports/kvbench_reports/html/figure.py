"""What a chart is made of on the page: a title, how to read it, panels, a legend, a table.

A figure without panels says why in `absent`; its table may still have rows. Data only: nothing
here knows of Vega-Lite, HTML or a report.
"""

from dataclasses import dataclass

Spec = dict[str, object]  # of Vega-Lite, without data URLs

# Outlines in Vega's units, -1 to 1, so that lines differ in more than colour. Each stands for one
# place in the order of a legend.
SHAPES = (
    "M0.8,0A0.8,0.8,0,1,1,-0.8,0A0.8,0.8,0,1,1,0.8,0Z",
    "M-0.7,-0.7L0.7,-0.7L0.7,0.7L-0.7,0.7Z",
    "M0,-0.95L0.9,0.65L-0.9,0.65Z",
    "M0,-1.05L1.05,0L0,1.05L-1.05,0Z",
    "M0,0.95L0.9,-0.65L-0.9,-0.65Z",
    "M-0.3,-1L0.3,-1L0.3,-0.3L1,-0.3L1,0.3L0.3,0.3L0.3,1L-0.3,1L-0.3,0.3L-1,0.3L-1,-0.3L-0.3,-0.3Z",
)
MOST_LINES = len(SHAPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The figures of a chart as text. Columns from `text` on are figures, aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One drawing. `label` is read out in its place."""

    key: str  # unique on the page, letters, digits and hyphens
    title: str
    label: str
    spec: Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a legend: the place in the order decides colour and shape."""

    text: str
    colour: str  # a CSS variable's name, without the hyphens
    shape: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart with everything that stands around it."""

    key: str
    title: str
    caption: str  # one sentence: how to read it
    table: Table
    panels: tuple[Panel, ...] = ()
    legend: tuple[Entry, ...] = ()
    legend_title: str = ""
    absent: str = ""  # why there is no panel, as the end of a sentence
    thinned: str = ""  # what was left out of the drawing

    @property
    def wide(self) -> bool:
        """A panel without a title takes the whole width; others stand side by side."""
        return any(not panel.title for panel in self.panels)


def legend_of(texts: tuple[str, ...]) -> tuple[Entry, ...]:
    """Entries in order; more than `MOST_LINES` would need shapes that nobody can tell apart."""
    return tuple(
        Entry(text=text, colour=f"line-{index}", shape=shape)
        for index, (text, shape) in enumerate(zip(texts, SHAPES, strict=False))
    )
