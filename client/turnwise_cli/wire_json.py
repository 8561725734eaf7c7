"""Messages as JSON values for people and `jq`: numbers as numbers, enums by name, bytes as hex."""

from typing import Any, TypeAlias

from google.protobuf.message import Message

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def plain(message: Message) -> dict[str, Json]:
    """A message by its field names; absent optional fields and empty submessages are left out."""
    result: dict[str, Json] = {}
    for field in message.DESCRIPTOR.fields:
        if not field.has_presence or message.HasField(field.name):
            result[field.name] = _value(field, getattr(message, field.name))
    return result


def _value(field: Any, value: Any) -> Json:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {str(key): _scalar(item, None) for key, item in value.items()}
    if field.is_repeated:
        return [_scalar(item, field) for item in value]
    return _scalar(value, field)


def _scalar(value: object, field: Any) -> Json:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, bytes):
        return value.hex()
    if field is not None and field.enum_type is not None and isinstance(value, int):
        named = field.enum_type.values_by_number.get(value)
        return named.name if named is not None else value
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a field of {type(value).__name__} has no JSON form here")
