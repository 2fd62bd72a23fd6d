"""What is worth a person's attention in a run, in plain words and with something to do.

A pure function of events: the live panel, the plain lines and the report find the same alerts.
An alert is raised once when its condition begins and again only after it has ended; conditions
look at spans, so that one odd step is no alarm. Each threshold bears its reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamita.reporting import alerts_of_learning as learning
from llamita.reporting import alerts_of_machine as machine
from llamita.reporting import alerts_of_preferences as preferences
from llamita.reporting.alert_rule import Alert as Alert
from llamita.reporting.alert_rule import Facts, Rule
from llamita.reporting.events import Event


def find_alerts(events: Sequence[Event]) -> list[Alert]:
    """Every alert that a run raised, in order. Events of unknown kinds are passed over."""
    finder = AlertFinder()
    return [alert for event in events for alert in finder.observe(event)]


class AlertFinder:
    """The same, event by event. `active` holds the alerts whose condition lasts."""

    def __init__(self) -> None:
        self._facts = Facts()
        self._rules = [rule(self._facts) for rule in _RULES]
        # Steps are most of the events, and only the rules of learning look at them.
        self._steps = [rule for rule in self._rules if rule.of_steps]

    def observe(self, event: Event) -> list[Alert]:
        """The alerts that this event raises."""
        self._facts.observe(event)
        rules = self._steps if event["event"] == "step" else self._rules
        raised = [rule.observe(event) for rule in rules]
        return [alert for alert in raised if alert is not None]

    @property
    def active(self) -> list[Alert]:
        return [rule.active for rule in self._rules if rule.active is not None]


_RULES: tuple[type[Rule], ...] = (
    learning.NonFinite,
    learning.Spikes,
    learning.Rising,
    learning.Overfitting,
    learning.VanishedRate,
    learning.Clipped,
    preferences.WorseThanReference,
    preferences.LearnedByHeart,
    preferences.BothUnlikely,
    machine.DataWait,
    machine.Throughput,
    machine.Memory,
    machine.Unsaved,
    machine.SinkFailed,
)
