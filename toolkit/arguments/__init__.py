"""The flags that recipes share: one dataclass for each subject, without behavior.

``toolkit.flags`` shows how a flag is declared. The code that acts on these dataclasses is in the
files named ``from_arguments`` in ``models``, ``data`` and ``training``.
"""
