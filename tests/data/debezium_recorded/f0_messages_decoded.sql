-- Messages with decoded contents.
-- @config transforms=dec
-- @config transforms.dec.type=io.debezium.connector.postgresql.transforms.DecodeLogicalDecodingMessageContent
-- @config transforms.dec.fields.null.include=true
-- @config provide.transaction.metadata=true
-- @setup
CREATE TABLE public.m (id int PRIMARY KEY);
-- @stream
SELECT pg_logical_emit_message(true, 'app', '{"a": 1, "b": [1, 2], "c": null, "d": {"e": "x"}}');
SELECT pg_logical_emit_message(false, 'app', '{"x": 1.5}');
INSERT INTO public.m VALUES (1);
