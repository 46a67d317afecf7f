-- @setup
CREATE TABLE public.l (id int PRIMARY KEY, v text);
INSERT INTO public.l VALUES (1,'a');
-- @stream
INSERT INTO public.l VALUES (2,'b');
-- @sync
DROP TABLE public.l;
CREATE TABLE public.l (k text PRIMARY KEY, n int);
INSERT INTO public.l VALUES ('x',1);
-- @sync
ALTER TABLE public.l RENAME TO l2;
INSERT INTO public.l2 VALUES ('y',2);
-- @sync
CREATE SCHEMA s2;
ALTER TABLE public.l2 SET SCHEMA s2;
INSERT INTO s2.l2 VALUES ('z',3);
UPDATE s2.l2 SET n=4 WHERE k='x';
-- @sync
BEGIN;
CREATE TABLE public.intx (id int PRIMARY KEY);
INSERT INTO public.intx VALUES (1);
ALTER TABLE public.intx ADD v text;
INSERT INTO public.intx VALUES (2,'q');
COMMIT;
-- @sync
CREATE TABLE public.ctas AS SELECT 1 AS id, 'x'::text AS v;
-- @sync
TRUNCATE public.intx;
INSERT INTO public.intx VALUES (3,'w');
-- @sync
