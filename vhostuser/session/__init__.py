"""The rules of a vhost-user conversation, as pure state: no sockets, no Trio, no memory, no rings.

``backend`` is the back-end's side of one connection; ``vrings`` has the rules that concern a single ring; ``witness``
sees both sides and says who broke which rule.
"""
