"""Sentences of a specification that state rules: found in a text of our own, numbered and hashed."""

from __future__ import annotations

import pytest

from scripts.sentences import Sentence, sentences

TEXT = """\
.. _label:

====
Tea
====

..
  A comment must not be read.

Water must boil, e.g. in a kettle. Nobody knows
why. Cups (if there
are any) should be warm!

.. Note:: Milk may
   not be heated. It is white.

+------+
| must |
+------+

Pouring
-------

The cook must::

  if must: never

stop then.

:pot: it has to be
  clean
:lid: round

The pot must:

* be full
* stand (see
  :ref:`label`), and never be cold

Guests may drink. A guest MAY also leave.

``TEA_POUR`` (previous name ``TEA_SPILL``)

* just an item

``VHOST_USER_POUR`` (previous name ``VHOST_USER_SPILL``)
  :id: 1
  :request payload: must not be read

  Only legal if there is tea.

  .. code:: c

    /* must */
"""

RULES = [
    ("Tea", 10, "Water must boil, e.g. in a kettle."),
    ("Tea", 10, "Cups (if there are any) should be warm!"),
    ("Tea", 14, "Milk may not be heated."),
    ("Pouring", 24, "The cook must:"),
    ("Pouring", 30, "it has to be clean"),
    ("Pouring", 34, "The pot must:"),
    ("Pouring", 36, "be full"),
    ("Pouring", 37, "stand (see :ref:`label`), and never be cold"),
    ("Pouring", 40, "A guest MAY also leave."),
    ("VHOST_USER_POUR", 50, "Only legal if there is tea."),
]


def test_which_sentences_are_rules_and_where_they_stand() -> None:
    assert [(rule.section, rule.line, rule.text) for rule in sentences(TEXT)] == RULES


@pytest.mark.parametrize("text", ["", "\n\n", "Tea\n===\n", ".. code:: c\n\n  must\n", "It is warm.\n"])
def test_a_text_without_rules(text: str) -> None:
    assert sentences(text) == []


def test_line_breaks_do_not_change_a_rule_and_words_do() -> None:
    (broken,), (whole,) = sentences("Water\nmust boil.\n"), sentences("Water must boil.\n")
    assert broken.hash == whole.hash == Sentence("elsewhere", 9, whole.text).hash
    assert sentences("Water must not boil.\n")[0].hash != whole.hash
