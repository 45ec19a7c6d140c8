//! Backups of changed blocks, in the format of Longhorn's backupstore.
