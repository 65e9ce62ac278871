"""KT6xx: what is no longer as a lock says, see kerneltable.select.lock."""

from kerneltable.table.rule import Rule

RULES = (
    Rule("KT601", "table is not the locked one", "A layer of the table has another content than when the lock was "
         "written, is missing, or stands elsewhere. Decisions may be the same all the same.", "", "",
         "Roll the locked files out, or review the change and write the lock again."),
    Rule("KT602", "decision is not the locked one", "On this device some layers would get another kernel than when the "
         "lock was written.", "", "",
         "Look at `kerneltable diff` between the two tables; if it is right, write the lock again."),
    Rule("KT603", "package is not the locked one", "Another version is installed here than when the lock was written.",
         "", "", "Install the locked version, or write the lock again; `lock --no-packages` leaves versions open."),
    Rule("KT604", "lock was changed by hand", "The digest of the lock does not fit its content.", "", "",
         "Write the lock again with `kerneltable lock`."),
)  # fmt: skip
