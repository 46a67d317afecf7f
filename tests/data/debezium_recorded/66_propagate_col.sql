-- @config column.propagate.source.type=.*
-- Character types.
-- @setup
CREATE TABLE public.ch (id int PRIMARY KEY, t text, v varchar(10), vu varchar, c char(5), c1 char, nm name, ic "char");
INSERT INTO public.ch VALUES (1, 'plain', 'abc', 'unbounded', 'ab', 'x', 'a_name', 'q'),
 (2, '', '', '', '', '', '', ''), (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
 (4, E'line1\nline2\ttab "dq" \\back/slash \u0001', 'ünïcödé', '日本語 😀', '日本', 'é', 'Ωname', 'z');
-- @stream
INSERT INTO public.ch SELECT id + 10, t, v, vu, c, c1, nm, ic FROM public.ch ORDER BY id;
INSERT INTO public.ch (id, t) VALUES (21, '  lead/trail  '), (22, 'NULL'), (23, 'null'), (24, '\N'), (25, '__debezium_unavailable_value'), (26, '<&>''"'), (27, E'\u2028\u007f');
