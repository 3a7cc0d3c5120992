"""What every report has to be: readable on a phone, on paper, in the dark, by keyboard and without colour vision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from browser import Browser, OpenPage

PHONE, DESK, PAPER = 375, 1280, 718  # A4 less its margins, at 96 dots an inch
# An empty page has one colour. Text and charts on it spread the pixels by far more.
_LEAST_SPREAD = 8.0
# Of the Web Content Accessibility Guidelines, level AA, for text.
_LEAST_CONTRAST = 4.5
# Linear RGB as those without green cones see it (Machado et al. 2009, severity 1).
_NO_GREEN = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])

_VIEWER_DRAWN = "document.querySelector('#viewer canvas') !== null"


def check_readable(path: Path, browser: Browser, *, sorts: str, viewer: bool = True) -> None:
    """Run all checks.

    Args:
        path: The page.
        browser: Running.
        sorts: CSS selector of a title's button that sorts a table.
        viewer: A structure is shown.
    """
    with browser.page(path, width=DESK) as page:
        if viewer:
            page.wait(_VIEWER_DRAWN)
        _check_drawn(page)
        _check_names(page)
        _check_contrast(page)
        page.media(dark=True)
        _check_contrast(page)
        page.media()
        _check_keyboard(page, sorts)
        page.resize(PHONE, 740)
        page.value("scrollTo(0, 0)")
        _check_no_sideways(page, PHONE)
        _check_drawn(page)
        _check_print(page)
        assert page.complaints() == []


def _check_no_sideways(page: OpenPage, width: int) -> None:
    assert page.value("innerWidth") == width
    wide = page.value(
        "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll, pre, .viewer, svg, .skip') && getComputedStyle(e).display !== 'none')"
        ".map(e => `${e.tagName}.${e.className}#${e.id}`)"
    )
    assert wide == []
    assert page.value("document.documentElement.scrollWidth") <= width


def _check_drawn(page: OpenPage) -> None:
    shot = page.screenshot().astype(float)
    assert shot.std() > _LEAST_SPREAD
    # Nor is half of it empty: every third of the window has something in it.
    for part in np.array_split(shot, 3, axis=0):
        assert part.std() > 1


def _check_names(page: OpenPage) -> None:
    """Everything that can be used or looked at says what it is."""
    unnamed = page.value(
        "[...document.querySelectorAll('button, a[href], select, input, img, svg[role], table, .scroll, .viewer')]"
        ".filter(e => !e.closest('.viewer > *')).filter(e => !(e.textContent.trim() || e.alt || e.ariaLabel"
        " || e.labels?.length || e.caption)).map(e => e.outerHTML.slice(0, 120))"
    )
    assert unnamed == [], unnamed
    assert page.value("document.querySelectorAll('main').length") == 1
    assert page.value("document.querySelectorAll('h1').length") == 1
    assert page.value("document.documentElement.lang") == "en"
    # The keyboard can scroll what is too wide.
    assert page.value("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)")


def _check_contrast(page: OpenPage) -> None:
    for name in ("--text", "--muted", "--link", "--better", "--worse"):
        colour, ground = (_css_colour(page, each) for each in (name, "--page"))
        assert _contrast(colour, ground) >= _LEAST_CONTRAST, name
    # What is better and what is worse can be told apart without green cones: by their distance in linear RGB.
    better, worse = (_NO_GREEN @ _linear(_css_colour(page, name)) for name in ("--better", "--worse"))
    assert np.linalg.norm(better - worse) > 0.25


def _css_colour(page: OpenPage, name: str) -> np.ndarray:
    text = page.value(f"getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()")
    digits = text.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    return np.array([int(digits[place : place + 2], 16) for place in (0, 2, 4)]) / 255


def _linear(colour: np.ndarray) -> np.ndarray:
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def _contrast(one: np.ndarray, other: np.ndarray) -> float:
    light = sorted(float(_linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


def _check_keyboard(page: OpenPage, sorts: str) -> None:
    """The first Tab shows the way past the head; a title sorts by Enter, and where the focus is can be seen."""
    page.press("Tab", 9)
    assert page.value("document.activeElement.className") == "skip"
    assert page.value("document.activeElement.getBoundingClientRect().left >= 0")
    page.press("Enter", 13)
    page.wait("document.activeElement.id === 'main' || location.hash === '#main'")
    button = f"document.querySelector({sorts!r})"
    directions = []
    for _ in range(2):
        page.value(f"{button}.focus()")
        page.press("Enter", 13)
        directions.append(page.value(f"{button}.closest('th').getAttribute('aria-sort')"))
    assert sorted(directions) == ["ascending", "descending"]
    page.press("Tab", 9)
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert page.value("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    # One title at a time says that it sorts.
    assert page.value(f"{button}.closest('table').querySelectorAll('[aria-sort]').length") == 1


def _check_print(page: OpenPage) -> None:
    page.resize(PAPER, 1000)
    page.media(medium="print", dark=True)
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = "[...document.querySelectorAll('.viewer, .bar, .skip')].every(e => !e.checkVisibility())"
    assert page.value(hidden) is True
    assert page.value("document.documentElement.scrollWidth") <= PAPER
    # Nothing is cut off at the edge of a table that scrolls on a screen.
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > innerWidth + 1).map(e => e.ariaLabel)"
    assert page.value(wide) == []
    made = page.pdf()
    assert made.startswith(b"%PDF")
    assert b"/Type /Page" in made or b"/Type/Page" in made
    page.media()
