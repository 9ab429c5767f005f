"""The flags that recipes share: a dataclass for each subject, and nothing that acts on them.

``toolkit.flags`` says how a flag is declared. What acts on these dataclasses stands in
``models``, ``data`` and ``training``, in files of the name ``from_arguments``.
"""
