"""151 class names: 150 intents and ``out of scope``, with words separated by spaces."""

from __future__ import annotations

_BY_TOPIC = {
    "card": "arrival activation delivery_time declined not_working swallowed expired lost stolen replacement limit",
    "card_payment": "fee declined pending reverted twice wrong_rate not_recognised abroad",
    "cash_withdrawal": "fee declined pending wrong_amount wrong_rate not_recognised limit",
    "transfer": "failed fee pending cancelled limit timing not_received wrong_account abroad into_account",
    "top_up": "failed fee pending reverted limit by_card by_transfer by_cash automatic",
    "account": "open close blocked balance statement interest joint savings terms age_limit",
    "pin": "change blocked forgotten",
    "password": "change forgotten reset",
    "phone": "lost new_number contract data_plan roaming",
    "identity": "check why_needed cannot_confirm documents",
    "refund": "request missing status policy",
    "order": "status cancel change missing_item wrong_item damaged_item history",
    "parcel": "track late lost return pick_up customs",
    "flight": "book cancel change status delayed baggage seat meal",
    "hotel": "book cancel change reviews early_arrival late_departure",
    "car": "rent insurance service tyre_pressure oil_change",
    "train": "book delayed seat timetable",
    "restaurant": "book cancel reviews suggestion opening_hours",
    "recipe": "find substitute calories cooking_time shopping_list",
    "weather": "today tomorrow weekend warning",
    "calendar": "read add remove",
    "reminder": "read add remove",
    "music": "play next",
    "lights": "on off dim",
    "insurance": "claim change coverage premium",
    "tax": "return refund documents",
    "bill": "pay due amount",
    "direct_debit": "set_up cancel not_recognised",
    "small_talk": "greeting goodbye",
}
OUT_OF_SCOPE = "out of scope"


def intents() -> list[str]:
    """The names, 151 of them."""
    names = [f"{topic}_{what}".replace("_", " ") for topic, kinds in _BY_TOPIC.items() for what in kinds.split()]
    return [*names, OUT_OF_SCOPE]
