"""The protocol: messages, their bytes, and the content that they carry. For both sides; has no state.

    messages <- codec <- content

Every public name of these three is also one of `wire`.
"""

from .codec import *  # noqa: F403
from .content import *  # noqa: F403
from .messages import *  # noqa: F403
