"""The properties of Debezium's PostgreSQL connector, and what each does here.

Names, types and defaults are those of `debezium/debezium`, tag v3.6.1.Final: `PostgresConnectorConfig`,
`RelationalDatabaseConnectorConfig`, `CommonConnectorConfig` and the classes that they name, and the manual's page
``connectors/postgresql.adoc``. The sentences are ours.
"""

from __future__ import annotations

from headrace.capture.debezium.properties import (
    Kind,
    Property,
    done,
    harmless,
    not_yet,
    refused,
    written,
)

_JVM = harmless("Tunes Debezium's own process, which there is none of.")
_RETRIES = harmless("A server that is lost is tried again for ever, with growing pauses of at most some seconds.")
_JAVA = refused("Code in Java cannot be loaded. Leave it out.")
_LINEAGE = harmless("OpenLineage events are not sent; the log itself knows where each row came from.")
_FORMAT = "Rows keep PostgreSQL's types in the log."
_CALLED = refused("Nobody calls into this process. «headrace snapshot TABLE» asks for rows while the capture runs.")
_TEXT_FORM = "The log has these values in PostgreSQL's text form."
_CREDENTIALS = "Given to libpq, which connects."

CONNECTION = (
    Property(
        "database.hostname",
        Kind.TEXT,
        None,
        done("The host that is connected to; several, by commas, as libpq has them."),
        required=True,
    ),
    Property("database.port", Kind.INTEGER, "5432", done("The port that is connected to."), minimum=1, maximum=65_535),
    Property("database.user", Kind.TEXT, None, done("The role, which needs REPLICATION and SELECT."), required=True),
    Property(
        "database.password",
        Kind.SECRET,
        None,
        done("The password; left out, PGPASSWORD or ~/.pgpass says it. Never shown."),
    ),
    Property("database.dbname", Kind.TEXT, None, done("The database."), required=True),
    Property(
        "database.sslmode",
        Kind.WORD,
        "prefer",
        done("libpq's sslmode, of the same name."),
        allowed=("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    ),
    Property("database.sslcert", Kind.TEXT, None, done("libpq's sslcert: the client's certificate, PEM.")),
    Property("database.sslkey", Kind.TEXT, None, done("libpq's sslkey: the client's key, PEM or DER.")),
    Property("database.sslpassword", Kind.SECRET, None, done("libpq's sslpassword, of that key. Never shown.")),
    Property("database.sslrootcert", Kind.TEXT, None, done("libpq's sslrootcert: who is trusted, PEM.")),
    Property("database.sslfactory", Kind.CLASS, None, _JAVA),
    Property(
        "database.tcpKeepAlive",
        Kind.BOOLEAN,
        "true",
        done("libpq's keepalives: on with probes after 30 s, or off."),
    ),
    Property(
        "database.initial.statements",
        Kind.TEXT,
        None,
        refused(
            "Sessions of the capture have fixed settings, so that values read the same everywhere. "
            "Leave it out, or use ALTER ROLE … SET."
        ),
    ),
    Property(
        "database.connection.timeout.ms",
        Kind.MILLISECONDS,
        "600000",
        harmless("An attempt to connect is given up after 10 s, and made again."),
        minimum=0,
    ),
    Property(
        "database.query.timeout.ms",
        Kind.MILLISECONDS,
        "600000",
        harmless("No query is cut off by a time-out; what it waits for is said."),
        minimum=0,
    ),
    Property("database.connection.factory.class", Kind.CLASS, None, _JAVA),
    Property(
        "database.<property>",
        Kind.TEXT,
        None,
        refused("A parameter of the JDBC driver, which is not used. Say it in libpq's words, by the PG… variables."),
    ),
    Property(
        "driver.<property>",
        Kind.TEXT,
        None,
        refused("A parameter of the JDBC driver, which is not used. Say it in libpq's words, by the PG… variables."),
    ),
    Property("connection.validation.timeout.ms", Kind.MILLISECONDS, "60000", _JVM, minimum=0),
)

REPLICATION = (
    Property(
        "plugin.name",
        Kind.WORD,
        "decoderbufs",
        done("pgoutput is what is read: every server has it."),
        {"decoderbufs": harmless("pgoutput is read in its place: every server has it, and the events are the same.")},
        allowed=("pgoutput", "decoderbufs"),
    ),
    Property(
        "slot.name",
        Kind.TEXT,
        "debezium",
        done(
            "The slot that the capture makes for itself. One that exists can only be used with "
            "snapshot.mode=no_data. Left out, the name is headrace_ and the topic prefix, so that Debezium's own "
            "slot is left alone."
        ),
        form=("[a-z0-9_]{1,63}", "1 to 63 lower-case letters, digits and _"),
    ),
    Property(
        "slot.drop.on.stop",
        Kind.BOOLEAN,
        "false",
        refused("Without its slot a log has a gap. «headrace slots drop» or «headrace down» drops it when you say so."),
        {"false": done("The slot stays where the capture stopped.")},
    ),
    Property(
        "slot.failover",
        Kind.BOOLEAN,
        "false",
        done("The slot is made so that standbys keep it, and one that is there becomes so; from PostgreSQL 17 on."),
    ),
    Property(
        "slot.stream.params",
        Kind.TEXT,
        None,
        refused("The parameters of pgoutput are set by the capture. Leave it out."),
    ),
    Property(
        "slot.max.retries", Kind.INTEGER, "6", harmless("A slot that is in use is waited for, 30 s long."), minimum=0
    ),
    Property(
        "slot.retry.delay.ms",
        Kind.MILLISECONDS,
        "10000",
        harmless("A slot that is in use is looked at again at once."),
        minimum=0,
    ),
    Property(
        "internal.slot.seek.to.known.offset.on.start",
        Kind.BOOLEAN,
        "false",
        harmless("Slot and log are always compared at the start, and a gap is refused."),
    ),
    Property(
        "internal.create.slot.command.timeout",
        Kind.INTEGER,
        "90",
        harmless("Making a slot is waited for, and it is said for whose transaction."),
        minimum=0,
    ),
    Property(
        "offset.mismatch.strategy",
        Kind.WORD,
        "no_validation",
        harmless("Slot and log are always compared at the start, and a gap is refused."),
        dict.fromkeys(
            ("trust_slot", "trust_greater_lsn"),
            refused("It accepts rows that are missing. «headrace capture resync» brings them into the log."),
        ),
        allowed=("no_validation", "trust_offset", "trust_slot", "trust_greater_lsn"),
    ),
    Property(
        "publication.name",
        Kind.TEXT,
        "dbz_publication",
        done(
            "The publication that is read; made where there is none. Left out, the name is headrace_ and the topic "
            "prefix."
        ),
        form=(".{1,63}", "1 to 63 characters"),
    ),
    Property(
        "publication.autocreate.mode",
        Kind.WORD,
        "all_tables",
        done("How a publication is made."),
        {
            "all_tables": done(
                "A publication that is missing is made FOR ALL TABLES: a table that is created later is captured from "
                "its first row. Where the role is no superuser it is made for the captured tables, and later ones "
                "join, with their rows."
            ),
            "filtered": done(
                "A publication that is missing is made for the captured tables, and later ones join, with their rows; "
                "one of a name that you gave and that exists is kept."
            ),
            "disabled": done("The publication has to exist."),
            "no_tables": refused("A publication without tables captures nothing. Use filtered or disabled."),
        },
        allowed=("all_tables", "disabled", "filtered", "no_tables"),
    ),
    Property(
        "publish.via.partition.root",
        Kind.BOOLEAN,
        "false",
        done("Rows of a partition are events of its partitioned table. A snapshot reads partitions that match, too."),
        {
            "false": done(
                "Rows of a partition are events of the partition; a snapshot reads those of a partitioned table that "
                "matches under its own name, too."
            )
        },
    ),
    Property(
        "replica.identity.autoset.values",
        Kind.LIST,
        None,
        not_yet("Tables are not altered: ALTER TABLE … REPLICA IDENTITY … yourself."),
    ),
    Property(
        "status.update.interval.ms",
        Kind.MILLISECONDS,
        "10000",
        harmless("What is in the log is acknowledged 0.1 s later, and the server is asked every second."),
        minimum=1,
    ),
    Property(
        "xmin.fetch.interval.ms",
        Kind.MILLISECONDS,
        "0",
        not_yet("Events have no xmin."),
        minimum=0,
    ),
    Property(
        "lsn.flush.mode",
        Kind.WORD,
        "connector",
        done("The slot advances when rows are durably in the log, and past what other tables write."),
        {"manual": refused("The server would keep its WAL for ever. Leave it out.")},
        allowed=("connector", "manual", "connector_and_driver"),
    ),
    Property(
        "flush.lsn.source",
        Kind.BOOLEAN,
        "true",
        refused("The server would keep its WAL for ever. Leave it out (it is deprecated for lsn.flush.mode)."),
        {"true": done("The slot advances when rows are durably in the log.")},
    ),
    Property("lsn.flush.timeout.ms", Kind.MILLISECONDS, "30000", _RETRIES, minimum=1),
    Property("lsn.flush.timeout.action", Kind.WORD, "fail", _RETRIES, allowed=("fail", "warn", "ignore")),
    Property(
        "read.only",
        Kind.BOOLEAN,
        "false",
        done(
            "Incremental snapshots write nothing into the table of signals; publication and slot are made all the same."
        ),
        {
            "false": done(
                "Incremental snapshots enclose each chunk by two rows in the table of signals, as Debezium does."
            )
        },
    ),
    Property(
        "schema.refresh.mode",
        Kind.WORD,
        "columns_diff",
        harmless("A change of a table is taken from the stream, at the row where it takes effect."),
        allowed=("columns_diff", "columns_diff_exclude_unchanged_toast"),
    ),
)

TABLES = (
    Property(
        "topic.prefix",
        Kind.TEXT,
        None,
        done("First part of the topics' names, and the source's name."),
        form=("[A-Za-z0-9._-]+", "letters, digits, dots, - and _"),
        required=True,
    ),
    Property(
        "table.include.list",
        Kind.REGEXES,
        None,
        done("Tables (schema.table) that are captured; the whole name has to match, whatever the case."),
    ),
    Property("table.exclude.list", Kind.REGEXES, None, done("Tables (schema.table) that are not captured.")),
    Property("schema.include.list", Kind.REGEXES, None, done("Schemas whose tables are captured.")),
    Property("schema.exclude.list", Kind.REGEXES, None, done("Schemas whose tables are not captured.")),
    Property(
        "table.ignore.builtin",
        Kind.BOOLEAN,
        "true",
        refused("PostgreSQL does not publish its own tables."),
        {"true": done("PostgreSQL's own tables are never captured.")},
    ),
    Property(
        "column.include.list",
        Kind.REGEXES,
        None,
        written("only these columns, and those of the key. The log has all."),
    ),
    Property(
        "column.exclude.list",
        Kind.REGEXES,
        None,
        written("all columns but these. The log has all; a publication with a column list keeps them on the server."),
    ),
    Property(
        "column.mask.with.<length>.chars",
        Kind.REGEXES,
        None,
        written("asterisks in place of texts, NULL too. The log has the values."),
    ),
    Property(
        "column.mask.hash.<algorithm>.with.salt.<salt>",
        Kind.REGEXES,
        None,
        written("a digest of salt and value, as Java serialises it, in place of texts. The log has the values."),
    ),
    Property(
        "column.mask.hash.v2.<algorithm>.with.salt.<salt>",
        Kind.REGEXES,
        None,
        written("a digest of salt and value in place of texts. The log has the values."),
    ),
    Property(
        "column.truncate.to.<length>.chars",
        Kind.REGEXES,
        None,
        written("the first characters. The log has all."),
    ),
    Property(
        "column.propagate.source.type",
        Kind.REGEXES,
        None,
        written("the schemas have the columns' types of PostgreSQL, as the log has them in any case."),
    ),
    Property(
        "datatype.propagate.source.type",
        Kind.REGEXES,
        None,
        written("the schemas have the columns' types of PostgreSQL, by schema.table.type."),
    ),
    Property(
        "message.key.columns",
        Kind.TEXT,
        None,
        written("the key has these columns. In the log a row's key is its table's primary key."),
    ),
    Property(
        "guardrail.collections.max", Kind.INTEGER, "0", not_yet("The number of tables is not limited."), minimum=0
    ),
    Property(
        "guardrail.collections.limit.action",
        Kind.WORD,
        "warn",
        harmless("It says what guardrail.collections.max does."),
        allowed=("warn", "fail"),
    ),
)

EVENTS = (
    Property(
        "time.precision.mode",
        Kind.WORD,
        "adaptive",
        written(f"dates and times so. {_FORMAT}"),
        allowed=("adaptive", "adaptive_time_microseconds", "connect", "isostring", "microseconds", "nanoseconds"),
    ),
    Property(
        "decimal.handling.mode",
        Kind.WORD,
        "precise",
        written(f"numeric and money so. {_FORMAT}"),
        allowed=("precise", "string", "double"),
    ),
    Property(
        "binary.handling.mode",
        Kind.WORD,
        "bytes",
        written(f"bytea so. {_FORMAT}"),
        allowed=("bytes", "base64", "base64-url-safe", "hex"),
    ),
    Property(
        "hstore.handling.mode",
        Kind.WORD,
        "json",
        written(f"hstore so. {_TEXT_FORM}"),
        allowed=("json", "map"),
    ),
    Property(
        "interval.handling.mode",
        Kind.WORD,
        "numeric",
        written(f"interval so. {_TEXT_FORM}"),
        allowed=("numeric", "string"),
    ),
    Property(
        "money.fraction.digits",
        Kind.INTEGER,
        "2",
        written(f"the digits of money. {_TEXT_FORM}"),
        minimum=0,
    ),
    Property(
        "include.unknown.datatypes",
        Kind.BOOLEAN,
        "false",
        written("columns of types that Debezium does not know. The log has them all, in their text form."),
    ),
    Property(
        "unavailable.value.placeholder",
        Kind.TEXT,
        "__debezium_unavailable_value",
        written(
            "stands for a value that an update did not send. In the log it is NULL, and its column is named in the "
            "row's __unchanged: no user's value can be mistaken for it."
        ),
    ),
    Property(
        "tombstones.on.delete",
        Kind.BOOLEAN,
        "true",
        written("a tombstone stands behind each delete. A Kafka log has them in any case."),
    ),
    Property(
        "skipped.operations",
        Kind.WORDS,
        "t",
        written("these are left out; truncates (t) too, where nothing is said. The log has all of them."),
        {"none": written("inserts, updates, deletes and truncates are all there.")},
        allowed=("c", "u", "d", "t", "none"),
    ),
    Property(
        "skip.messages.without.change",
        Kind.BOOLEAN,
        "false",
        written(
            "updates that change none of the columns that are written are left out, where the replica identity is "
            "FULL. The log has them."
        ),
    ),
    Property(
        "provide.transaction.metadata",
        Kind.BOOLEAN,
        "false",
        written(
            "the topic of transactions, and transaction in each event. The id is the transaction's number and the "
            "event's LSN; in END it is the commit's."
        ),
    ),
    Property(
        "transaction.metadata.factory",
        Kind.CLASS,
        "io.debezium.pipeline.txmetadata.DefaultTransactionMetadataFactory",
        _JAVA,
    ),
    Property(
        "message.prefix.include.list",
        Kind.REGEXES,
        None,
        done("Messages of pg_logical_emit_message with these prefixes are captured, into <prefix>.message."),
    ),
    Property(
        "message.prefix.exclude.list",
        Kind.REGEXES,
        None,
        done("Messages of pg_logical_emit_message with these prefixes are not captured; all others are."),
    ),
    Property("include.schema.comments", Kind.BOOLEAN, "false", not_yet("Comments of tables are not read.")),
    Property(
        "extended.headers.enabled",
        Kind.BOOLEAN,
        "true",
        harmless("Events have no headers __debezium.context.…."),
        {"true": not_yet("Events have no headers __debezium.context.…; say false.")},
    ),
    Property(
        "schema.name.adjustment.mode",
        Kind.WORD,
        "none",
        written("the schemas have names that Avro allows."),
        allowed=("none", "avro", "avro_unicode"),
    ),
    Property(
        "field.name.adjustment.mode",
        Kind.WORD,
        "none",
        written("the columns have names that Avro allows. The log has their own."),
        allowed=("none", "avro", "avro_unicode"),
    ),
    Property(
        "sourceinfo.struct.maker",
        Kind.CLASS,
        "io.debezium.connector.postgresql.PostgresSourceInfoStructMaker",
        _JAVA,
    ),
    Property("converters", Kind.LIST, None, refused("Custom converters are code in Java, which cannot be loaded.")),
    Property(
        "event.processing.failure.handling.mode",
        Kind.WORD,
        "fail",
        harmless(
            "A row that cannot be used goes to the dead letters with its reason, and the capture goes on; "
            "bytes that cannot be understood stop it."
        ),
        allowed=("fail", "warn", "skip", "ignore"),
    ),
    Property(
        "event.converting.failure.handling.mode",
        Kind.WORD,
        "warn",
        harmless("A value that cannot be had in its column's type sends the row to the dead letters, with its reason."),
        allowed=("warn", "skip", "fail"),
    ),
)

_TOPIC = ("[A-Za-z0-9._-]{1,249}", "1 to 249 letters, digits, dots, - and _")

TOPICS = (
    Property(
        "topic.naming.strategy",
        Kind.CLASS,
        "io.debezium.schema.SchemaTopicNamingStrategy",
        not_yet("Topics are <prefix>.<schema>.<table>."),
    ),
    Property(
        "topic.delimiter",
        Kind.TEXT,
        ".",
        written("it stands between the parts of a topic's name. In the log these are dots."),
        form=_TOPIC,
    ),
    Property("topic.cache.size", Kind.INTEGER, "10000", _JVM, minimum=1),
    Property(
        "topic.transaction",
        Kind.TEXT,
        "transaction",
        written("the topic of transactions is called so, behind the topic prefix."),
        form=_TOPIC,
    ),
    Property(
        "topic.heartbeat.prefix",
        Kind.TEXT,
        "__debezium-heartbeat",
        done("The topic of heartbeats is called so, with the topic prefix behind it."),
        form=_TOPIC,
    ),
    Property("topic.heartbeat.name", Kind.TEXT, None, done("The topic of heartbeats, whole."), form=_TOPIC),
    Property(
        "heartbeat.topics.prefix",
        Kind.TEXT,
        "__debezium-heartbeat",
        done("The older name of topic.heartbeat.prefix, which goes before it."),
        form=_TOPIC,
    ),
    Property("topic.regex", Kind.REGEX, None, not_yet("Topics are <prefix>.<schema>.<table>.")),
    Property("topic.replacement", Kind.TEXT, None, not_yet("Topics are <prefix>.<schema>.<table>.")),
    Property("topic.key.enforce.uniqueness", Kind.BOOLEAN, "true", not_yet("Topics are never merged.")),
    Property("topic.key.field.name", Kind.TEXT, "__dbz__physicalTableIdentifier", not_yet("Topics are never merged.")),
    Property("topic.key.field.regex", Kind.REGEX, None, not_yet("Topics are never merged.")),
    Property("topic.key.field.replacement", Kind.TEXT, None, not_yet("Topics are never merged.")),
)

_THREADS = harmless("Tables are read one after another by COPY, all of one moment.")
_CONFIGURED = done(
    "With snapshot.data the rows that are there are read, with start.stream changes are captured after them; "
    "snapshot.on.data.error begins anew, as when_needed does."
)

SNAPSHOTS = (
    Property(
        "snapshot.mode",
        Kind.WORD,
        "initial",
        done("A new log begins with the rows that are there; one that went on before goes on."),
        {
            "initial_only": done("A new log begins with the rows that are there; then the capture ends."),
            "no_data": done("Nothing is read: a new log begins where the slot stands."),
            "when_needed": done(
                "As initial; a log whose slot is gone or lost gets a new slot and all rows again. Nothing says which "
                "were deleted meanwhile: «headrace capture resync» does."
            ),
            "always": done(
                "As initial; at each later start an incremental snapshot of all tables with a primary key begins, "
                "while the stream goes on."
            ),
            "configuration_based": _CONFIGURED,
            "custom": _JAVA,
        },
        allowed=(
            "always",
            "initial",
            "initial_only",
            "no_data",
            "when_needed",
            "configuration_based",
            "custom",
        ),
    ),
    *(
        Property(f"snapshot.mode.configuration.based.{what}", Kind.BOOLEAN, "false", _CONFIGURED)
        for what in (
            "snapshot.data",
            "snapshot.schema",
            "start.stream",
            "snapshot.on.schema.error",
            "snapshot.on.data.error",
        )
    ),
    Property("snapshot.mode.custom.name", Kind.TEXT, None, _JAVA),
    Property(
        "snapshot.isolation.mode",
        Kind.WORD,
        "serializable",
        harmless("The snapshot is that of the slot's own moment, as repeatable_read with an exported snapshot."),
        allowed=("serializable", "repeatable_read", "read_committed", "read_uncommitted"),
    ),
    Property(
        "snapshot.locking.mode",
        Kind.WORD,
        "none",
        harmless("While they are read, tables cannot be altered (ACCESS SHARE); rows can be written."),
        {"custom": _JAVA},
        allowed=("shared", "none", "custom"),
    ),
    Property("snapshot.locking.mode.custom.name", Kind.TEXT, None, _JAVA),
    Property(
        "snapshot.query.mode",
        Kind.WORD,
        "select_all",
        done("All captured columns are read."),
        {"custom": _JAVA},
        allowed=("select_all", "custom"),
    ),
    Property("snapshot.query.mode.custom.name", Kind.TEXT, None, _JAVA),
    Property(
        "snapshot.include.collection.list",
        Kind.REGEXES,
        None,
        done("Only rows of these tables are read when a log begins; of the others changes alone are captured."),
    ),
    Property(
        "snapshot.select.statement.overrides",
        Kind.LIST,
        None,
        done("Rows of these tables are read by a query when a log begins."),
    ),
    Property(
        "snapshot.select.statement.overrides.<schema.table>",
        Kind.TEXT,
        None,
        done("The query; it has the table's columns. Names of your own functions need their schema."),
    ),
    Property(
        "snapshot.lock.timeout.ms",
        Kind.MILLISECONDS,
        "10000",
        harmless("A lock is waited for, and it is said who has it."),
    ),
    Property("snapshot.fetch.size", Kind.INTEGER, "10240", _THREADS, minimum=1),
    Property(
        "snapshot.max.threads",
        Kind.INTEGER,
        "1",
        done(
            "Connections over which a first snapshot reads parts of a table at once. The order of rows stays the same."
        ),
        minimum=1,
        maximum=64,
    ),
    Property("snapshot.max.threads.multiplier", Kind.INTEGER, "1", _THREADS, minimum=1),
    Property("legacy.snapshot.max.threads", Kind.BOOLEAN, "false", _THREADS),
    Property("internal.legacy.snapshot.max.threads", Kind.BOOLEAN, "false", _THREADS),
    Property(
        "snapshot.tables.order.by.row.count",
        Kind.WORD,
        "disabled",
        done("Tables are read in the order of their rows, as the server estimates them."),
        {"disabled": done("Tables are read in the order of their names, those that models learn from first.")},
        allowed=("ascending", "descending", "disabled"),
    ),
    Property("snapshot.delay.ms", Kind.MILLISECONDS, "0", done("The first snapshot begins so much later."), minimum=0),
    Property("streaming.delay.ms", Kind.MILLISECONDS, "0", refused("Start it later."), minimum=0),
    Property("internal.snapshot.scan.all.columns.force", Kind.BOOLEAN, "false", _JVM),
    Property(
        "incremental.snapshot.chunk.size",
        Kind.INTEGER,
        "1024",
        done("Rows of a chunk of an incremental snapshot."),
        minimum=1,
    ),
    Property(
        "incremental.snapshot.watermarking.strategy",
        Kind.WORD,
        "insert_insert",
        not_yet("The row that opens a window is never deleted."),
        {"insert_insert": done("A chunk is enclosed by two rows that are inserted into the table of signals.")},
        allowed=("insert_insert", "insert_delete"),
    ),
    Property(
        "incremental.snapshot.allow.schema.changes",
        Kind.BOOLEAN,
        "false",
        harmless("A chunk whose table was altered meanwhile is read again, in any case."),
    ),
)

SIGNALS = (
    Property(
        "signal.data.collection",
        Kind.TEXT,
        None,
        done(
            "Rows inserted into this table ask for incremental and blocking snapshots, stop, pause and resume them, or "
            "are logged. The table is captured, too."
        ),
        form=(r"[^,.]+\.[^,]+", "one schema.table"),
    ),
    Property(
        "signal.enabled.channels",
        Kind.WORDS,
        "source",
        done("Signals come by these: the table (source), a file, a topic (kafka); each is obeyed once."),
        {"jmx": _CALLED, "in-process": _CALLED},
        allowed=("source", "file", "kafka", "jmx", "in-process"),
    ),
    Property(
        "signal.poll.interval.ms",
        Kind.MILLISECONDS,
        "5000",
        done("File and topic are looked at so often; the table's rows come with the stream."),
        minimum=1,
    ),
    Property(
        "signal.file",
        Kind.TEXT,
        "file-signals.txt",
        done("Read where channels say file: a line of JSON a signal. Lines are deleted when they are obeyed."),
    ),
    Property(
        "signal.kafka.topic",
        Kind.TEXT,
        None,
        done(
            "Read where channels say kafka: partition 0, messages whose key is topic.prefix. Left out, it is "
            "<topic.prefix>-signal."
        ),
    ),
    Property("signal.kafka.bootstrap.servers", Kind.TEXT, None, done("The cluster that has this topic.")),
    Property(
        "signal.kafka.poll.timeout.ms", Kind.MILLISECONDS, "0", harmless("A thread of its own waits for messages.")
    ),
    Property(
        "signal.kafka.groupId",
        Kind.TEXT,
        "kafka-signal",
        done(
            "A log that has not read the topic begins behind this group's offset. How far it is, the log itself knows."
        ),
    ),
    Property(
        "signal.consumer.<property>",
        Kind.TEXT,
        None,
        done(
            "Given to the topic's consumer, which is librdkafka: its names, and those of Java's that mean the same; of "
            "sasl.jaas.config username and password."
        ),
    ),
    Property("signal.<property>", Kind.TEXT, None, not_yet("It is for a channel that is not known here.")),
    Property("notification.enabled.channels", Kind.LIST, None, not_yet("Progress is in «headrace capture status».")),
    Property(
        "notification.sink.topic.name",
        Kind.TEXT,
        None,
        harmless("It has a meaning where notification.enabled.channels says sink."),
    ),
    Property("notification.<property>", Kind.TEXT, None, not_yet("Progress is in «headrace capture status».")),
    Property(
        "heartbeat.interval.ms",
        Kind.MILLISECONDS,
        "0",
        done(
            "A row in the topic of heartbeats as often; 0 for never. The slot advances without them, also while only "
            "other tables are written."
        ),
        minimum=0,
    ),
    Property(
        "heartbeat.action.query",
        Kind.TEXT,
        None,
        done("Runs in that interval, on a connection of its own; a failure is said, and ends nothing."),
    ),
    Property(
        "post.processors",
        Kind.LIST,
        None,
        done("ReselectColumnsPostProcessor reads values again that an update did not send."),
    ),
)

_METRICS = harmless("It concerns JMX. «headrace run» with serve= has metrics for Prometheus.")

PROCESS = (
    Property("max.batch.size", Kind.INTEGER, "2048", _JVM, minimum=1),
    Property("max.queue.size", Kind.INTEGER, "8192", _JVM, minimum=1),
    Property("max.queue.size.in.bytes", Kind.INTEGER, "0", _JVM, minimum=0),
    Property("queue.provider.type", Kind.TEXT, "memory", _JVM),
    Property("poll.interval.ms", Kind.MILLISECONDS, "500", _JVM, minimum=1),
    Property("query.fetch.size", Kind.INTEGER, "0", _JVM, minimum=0),
    Property("executor.shutdown.timeout.ms", Kind.MILLISECONDS, "4000", _JVM, minimum=0),
    Property("errors.max.retries", Kind.INTEGER, "-1", _RETRIES, minimum=-1),
    Property("retriable.restart.connector.wait.ms", Kind.MILLISECONDS, "10000", _RETRIES, minimum=1),
    Property("internal.custom.retriable.exception", Kind.TEXT, None, _RETRIES),
    Property("internal.log.position.check.enable", Kind.BOOLEAN, "true", harmless("Slot and log are always compared.")),
    Property("internal.advanced.metrics.enable", Kind.BOOLEAN, "false", _METRICS),
    Property("statistics.metrics.enabled", Kind.BOOLEAN, "true", _METRICS),
    Property("custom.metric.tags", Kind.LIST, None, _METRICS),
    Property(
        "custom.sanitize.pattern",
        Kind.REGEX,
        None,
        harmless("Passwords, and whatever a name calls a secret, are never shown."),
    ),
    Property(
        "include.schema.changes",
        Kind.BOOLEAN,
        "true",
        harmless("There are no events of schema changes, as with Debezium's connector of PostgreSQL."),
    ),
    Property(
        "schema.history.internal.<property>",
        Kind.TEXT,
        None,
        harmless("There is no history of schemas, as with Debezium's connector of PostgreSQL."),
    ),
    Property("multi.partition.mode", Kind.BOOLEAN, "false", _JVM),
    Property("memory.management.schemas.<property>", Kind.TEXT, None, _JVM),
    Property("memory.management.tables.<property>", Kind.TEXT, None, _JVM),
    Property(
        "openlineage.integration.enabled",
        Kind.BOOLEAN,
        "false",
        refused("OpenLineage events are not sent. Say false; the log itself knows where each row came from."),
        {"false": _LINEAGE},
    ),
    *(
        Property(f"openlineage.integration.{name}", kind, default, _LINEAGE)
        for name, kind, default in (
            ("config.file.path", Kind.TEXT, "./openlineage.yml"),
            ("job.namespace", Kind.TEXT, None),
            ("job.description", Kind.TEXT, "Debezium change data capture job"),
            ("job.tags", Kind.LIST, None),
            ("job.owners", Kind.LIST, None),
            ("dataset.kafka.bootstrap.servers", Kind.TEXT, None),
        )
    ),
)


def _gone(name: str, now: str) -> Property:
    return Property(name, Kind.TEXT, None, refused(f"Debezium 3 has it no more. Use {now}."))


# Debezium itself ignores these in silence, and captures something else than was meant.
GONE = (
    _gone("database.server.name", "topic.prefix"),
    _gone("table.whitelist", "table.include.list"),
    _gone("table.blacklist", "table.exclude.list"),
    _gone("schema.whitelist", "schema.include.list"),
    _gone("schema.blacklist", "schema.exclude.list"),
    _gone("column.whitelist", "column.include.list"),
    _gone("column.blacklist", "column.exclude.list"),
    _gone("toasted.value.placeholder", "unavailable.value.placeholder"),
    _gone("slot.drop_on_stop", "slot.drop.on.stop"),
    _gone("snapshot.custom.class", "snapshot.mode.custom.name"),
    _gone("sanitize.field.names", "field.name.adjustment.mode"),
    _gone("event.deserialization.failure.handling.mode", "event.processing.failure.handling.mode"),
)

PROPERTIES: dict[str, tuple[Property, ...]] = {
    "Connection": CONNECTION,
    "Replication": REPLICATION,
    "Tables and columns": TABLES,
    "Events": EVENTS,
    "Topics": TOPICS,
    "Snapshots": SNAPSHOTS,
    "Signals, notifications, heartbeats": SIGNALS,
    "Debezium's own process": PROCESS,
    "Of earlier versions": GONE,
}
