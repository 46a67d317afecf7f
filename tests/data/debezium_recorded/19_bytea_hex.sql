-- @config binary.handling.mode=hex
-- bytea, binary.handling.mode=bytes.
-- @setup
CREATE TABLE public.by (id int PRIMARY KEY, b bytea, ba bytea[]);
INSERT INTO public.by VALUES (1, '\x00010203fffefdfbff', '{"\\x01","\\xff00"}'), (2, '', '{}'), (3, NULL, NULL);
-- @stream
INSERT INTO public.by VALUES (11, '\x00010203fffefdfbff', '{"\\x01","\\xff00"}'), (12, '', '{}'), (13, NULL, NULL), (14, 'text', '{NULL,"\\xab"}');
