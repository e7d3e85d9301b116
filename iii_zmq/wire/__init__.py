"""What travels: messages, their bytes, and the content that they carry. Both sides, no state.

    messages <- codec <- content

All that is public in these three is `wire.` something.
"""

from .codec import *  # noqa: F403
from .content import *  # noqa: F403
from .messages import *  # noqa: F403
