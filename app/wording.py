"""What does pydantic's message on a broken rule say in our words?"""

import re


def in_house_words(message: str) -> str:
    """Such as `must have at least 1 item, not 0`: it goes on from the field's name."""
    message = re.sub(r" valid dictionary(?: or instance of \w+)?", "n object", message)
    message = message.replace(" after validation", "").removeprefix("Value error, ")
    return re.sub(r"^(?:Input|String|List|Dictionary|Value) should ", "must ", message)
