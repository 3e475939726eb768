"""Calls between two processes over a socket: one asks the other to do something with an object, and is asked meanwhile.

Only plain data crosses, and numbers that stand for objects of the other side. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from judges.sandbox.plain import decode, encode

MAX_MESSAGE = 8 << 20
MUTABLE = (list, dict, set, bytearray)


class PeerGoneError(Exception):
    """The other process ended, or says what no process says that keeps to this."""


class NotPlainError(TypeError):
    """An object that has no place on the other side."""


class Peer:
    """One end of the socket."""

    def __init__(
        self,
        connection: int,
        serve: Callable[[str, list[Any], dict[str, Any]], Any],
        export: Callable[[Any], Any],
        find: Callable[[Any], Any],
        failure: Callable[[list[str], str], Exception],
    ) -> None:
        """Takes the end.

        Args:
            connection: the file of a socket to the other side; calls that only sockets have are not used.
            serve: does what the other side asks for.
            export: gives what stands for an object that is not plain.
            find: gives an object for what stands for it.
            failure: the exception to raise for one of the other side: the names of its classes, and its text.
        """
        self._connection, self._serve, self._export, self._find, self._failure = (
            connection,
            serve,
            export,
            find,
            failure,
        )
        self._buffer = bytearray()
        self.not_plain = ""
        """What this side asked with and could not, if so: whoever caught the error would not know."""

    def ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        """The other side's result. Lists, dicts and sets among the arguments change as they did over there.

        Raises:
            NotPlainError: an argument cannot be passed.
            PeerGoneError: the other side ended.
            Exception: what it raised.
        """
        try:
            given = [encode(list(arguments), self._export), encode(named, self._export)]
        except NotPlainError as error:
            self.not_plain = str(error)
            raise
        self._send(["ask", operation, *given])
        while True:
            message = self._receive()
            if message[0] == "ask":
                self._answer(*message[1:])
            elif message[0] == "raised":
                raise self._failure([str(name) for name in message[1]], str(message[2]))
            else:
                for place, data in message[2]:
                    _update(named[place] if isinstance(place, str) else arguments[place], decode(data, self._find))
                return decode(message[1], self._find)

    def serve(self) -> None:
        """Answers until the other side ends."""
        while True:
            try:
                message = self._receive()
            except PeerGoneError:
                return
            self._answer(*message[1:])

    def _answer(self, operation: str, arguments: Any, named: Any) -> None:
        try:
            values, words = decode(arguments, self._find), decode(named, self._find)
            places = {**dict(enumerate(values)), **words}
            before = {place: self._text_of(value) for place, value in places.items() if type(value) in MUTABLE}
            result = encode(self._serve(operation, values, words), self._export)
            changed = [
                (place, encode(places[place], self._export))
                for place, then in before.items()
                if self._text_of(places[place]) != then
            ]
            self._send(["done", result, changed])
        except PeerGoneError:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is for the other side
            self._send(["raised", [kind.__name__ for kind in type(error).__mro__], _text(error)])

    def _text_of(self, value: Any) -> str:
        return json.dumps(encode(value, self._export))

    def _send(self, message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        if len(data) > MAX_MESSAGE:
            raise ValueError(f"more than {MAX_MESSAGE} bytes at once")
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._connection, view) :]
        except OSError:
            raise PeerGoneError from None

    def _receive(self) -> Any:
        end = -1
        while end < 0:
            start = len(self._buffer)
            try:
                chunk = os.read(self._connection, 1 << 16)
            except OSError:
                chunk = b""
            self._buffer += chunk
            if not chunk or len(self._buffer) > MAX_MESSAGE:
                raise PeerGoneError
            end = self._buffer.find(b"\n", start)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
            shape = {"ask": 4, "done": 3, "raised": 3}[message[0]]
            if len(message) != shape:
                raise ValueError
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise PeerGoneError from None
        return message


def _update(value: Any, now: Any) -> None:
    if type(value) is not type(now) or type(value) not in MUTABLE:
        return
    value.clear()
    (value.extend if isinstance(value, list | bytearray) else value.update)(now)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException:  # noqa: BLE001  # its text is the program's, too
        return ""
