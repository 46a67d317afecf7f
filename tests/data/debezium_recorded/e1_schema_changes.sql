-- A table changes while it streams.
-- @setup
CREATE TABLE public.sc (id int PRIMARY KEY, a text, b int);
INSERT INTO public.sc VALUES (1, 'a', 1);
-- @stream
UPDATE public.sc SET b = 2;
-- @sync
ALTER TABLE public.sc ADD COLUMN c numeric(6,2) DEFAULT 1.25;
UPDATE public.sc SET b = 3;
-- @sync
ALTER TABLE public.sc ALTER COLUMN b TYPE bigint;
UPDATE public.sc SET b = 9223372036854775807;
-- @sync
ALTER TABLE public.sc RENAME COLUMN a TO "A b";
UPDATE public.sc SET b = 4;
-- @sync
ALTER TABLE public.sc DROP COLUMN c;
ALTER TABLE public.sc ADD COLUMN d timestamptz NOT NULL DEFAULT '2020-01-01 00:00+00';
INSERT INTO public.sc (id, b) VALUES (2, 5);
-- @sync
ALTER TABLE public.sc ALTER COLUMN d SET DEFAULT '2021-01-01 00:00+00', ALTER COLUMN "A b" SET DEFAULT 'z';
INSERT INTO public.sc (id, b) VALUES (3, 5);
-- @sync
ALTER TABLE public.sc DROP CONSTRAINT sc_pkey;
ALTER TABLE public.sc ADD PRIMARY KEY (b, id);
UPDATE public.sc SET b = 77 WHERE id = 2;
DELETE FROM public.sc WHERE id = 3;
-- @sync
ALTER TABLE public.sc RENAME TO sc2;
INSERT INTO public.sc2 (id, b) VALUES (4, 6);
-- @sync
CREATE TYPE public.col AS ENUM ('red');
ALTER TABLE public.sc2 ADD COLUMN e public.col DEFAULT 'red';
INSERT INTO public.sc2 (id, b) VALUES (5, 7);
-- @sync
ALTER TYPE public.col ADD VALUE 'blue';
INSERT INTO public.sc2 (id, b, e) VALUES (6, 8, 'blue');
-- @sync
CREATE SCHEMA other;
ALTER TABLE public.sc2 SET SCHEMA other;
INSERT INTO other.sc2 (id, b) VALUES (7, 9);
-- @sync
