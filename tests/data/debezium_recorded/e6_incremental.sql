-- An incremental snapshot by a signal, of a composite key and odd values.
-- @separate
-- @config signal.data.collection=public.sig
-- @config incremental.snapshot.chunk.size=2
-- @config snapshot.mode=no_data
-- @config provide.transaction.metadata=false
-- @setup
CREATE TABLE public.sig (id varchar(42) PRIMARY KEY, type varchar(32) NOT NULL, data varchar(2048));
CREATE TABLE public.inc (a text, b int, tz timestamptz, d date, n numeric, nm name, ts timestamp, ar date[], PRIMARY KEY (a, b));
INSERT INTO public.inc VALUES ('x', 1, 'infinity', '0044-03-15 BC', 'NaN', 'n', '-infinity', '{infinity}'), ('x', 2, '0044-03-15 00:00+00 BC', 'infinity', 1.50, NULL, '12345-01-01', '{12345-01-01,NULL}'), ('é', -5, NULL, '1582-10-10', NULL, NULL, '0044-03-15 BC', '{}'), ('', 0, '12345-01-01 00:00+00', NULL, 0, '', NULL, NULL);
-- @stream
INSERT INTO public.sig VALUES ('s1', 'execute-snapshot', '{"data-collections": ["public.inc"], "type": "incremental"}');
-- @sleep 3
INSERT INTO public.inc VALUES ('zz', 9, NULL, NULL, NULL, NULL, NULL, NULL);
-- @sync
