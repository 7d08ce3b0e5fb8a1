"""The idea as a drawing: how many teachers, how many headers, who learns from whom."""

_MOST = 4  # boxes that are drawn of a kind; more are told by their number


def idea(teachers: int, headers: int, has_generator: bool) -> str:
    """An SVG drawing, 420 wide, of the run's players.

    Args:
        teachers: how many.
        headers: of the student.
        has_generator: else the images are real.
    """
    source = (
        '<path d="M20 150L100 128V222L20 200z" fill="#f6e3c5" stroke="#c08a2d"/>'
        '<text x="60" y="180">generator</text><text x="60" y="118" fill="#5a6b7a">'
        "from noise</text>"
        if has_generator
        else '<rect x="20" y="136" width="80" height="78" rx="4" fill="#f6e3c5" '
        'stroke="#c08a2d"/><text x="60" y="172">real</text>'
        '<text x="60" y="190">images</text>'
    )
    back = (
        '<path d="M330 175H346V292H60V224" class="back"/><text x="200" y="310" '
        'fill="#b4432e">looks for images on which they disagree</text>'
        if has_generator
        else ""
    )
    return f"""<svg role="img" viewBox="0 0 420 325" font-size="14" class="idea"
 aria-label="Images go to {teachers} frozen teachers and to a student of {headers}
 headers; the student learns to answer as the teachers do.">
<defs><marker id="idea-tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"
 markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="#5a6b7a"/></marker>
<marker id="idea-tip-back" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"
 markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="#b4432e"/></marker>
</defs>
<g text-anchor="middle" fill="#22303c">{source}
<path d="M102 166C140 166 118 84 168 84" class="line"/>
<path d="M102 186C140 186 118 222 168 222" class="line"/>
{_boxes(teachers, 40, "#dfe8ee", "#8493a3")}
<text x="235" y="24">{_counted(teachers, "teacher")}, frozen</text>
<rect x="170" y="196" width="62" height="54" rx="4" fill="#d9ecd3" stroke="#5b7f3b"/>
<text x="201" y="228" font-size="12">trunk</text>
{_headers(headers)}
<text x="235" y="272">student, {_counted(headers, "header")}</text>
<path d="M300 84H330V166" class="line"/><path d="M300 222H330V184" class="line"/>
<circle cx="330" cy="175" r="5" fill="#22303c"/>
<text x="352" y="170" text-anchor="start">compare</text>
{back}</g></svg>"""


def _boxes(count: int, top: int, fill: str, stroke: str) -> str:
    shown = min(count, _MOST)
    height = (88 - 6 * (shown - 1)) / shown
    return "".join(
        f'<rect x="170" y="{top + index * (height + 6):.1f}" width="130" '
        f'height="{height:.1f}" rx="4" fill="{fill}" stroke="{stroke}"/>'
        for index in range(shown)
    )


def _headers(count: int) -> str:
    shown = min(count, _MOST)
    height = (54 - 5 * (shown - 1)) / shown
    return "".join(
        f'<rect x="238" y="{196 + index * (height + 5):.1f}" width="62" '
        f'height="{height:.1f}" rx="3" fill="#eef6eb" stroke="#5b7f3b"/>'
        for index in range(shown)
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
