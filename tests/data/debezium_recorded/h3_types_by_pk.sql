-- Keys of many types, and of indexes of many kinds.
-- @setup
CREATE TYPE public.mood AS ENUM ('ok', 'bad');
CREATE TABLE public.k_uuid (k uuid PRIMARY KEY, v int);
CREATE TABLE public.k_enum (k public.mood PRIMARY KEY, v int);
CREATE TABLE public.k_date (k date, k2 timestamp, k3 timestamptz, k4 time, v int, PRIMARY KEY (k, k2, k3, k4));
CREATE TABLE public.k_num (k numeric(8,2), k2 float8, k3 bool, v int, PRIMARY KEY (k, k2, k3));
CREATE TABLE public.k_text (k char(5), k2 varchar(3), k3 name, k4 "char", v int, PRIMARY KEY (k, k2, k3, k4));
CREATE TABLE public.k_net (k inet, k2 macaddr, k3 int4range, v int, PRIMARY KEY (k, k2, k3));
CREATE TABLE public.k_inc (k int, v int, x text, UNIQUE (k) INCLUDE (x));
CREATE TABLE public.k_expr (k text, v int); CREATE UNIQUE INDEX k_expr_i ON public.k_expr (lower(k));
CREATE TABLE public.k_part (k int, v int); CREATE UNIQUE INDEX k_part_i ON public.k_part (k) WHERE v > 0;
-- @stream
INSERT INTO public.k_uuid VALUES ('A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 1);
UPDATE public.k_uuid SET k = '00000000-0000-0000-0000-000000000000';
INSERT INTO public.k_enum VALUES ('ok', 1);
UPDATE public.k_enum SET k = 'bad';
INSERT INTO public.k_date VALUES ('2024-02-29', '2024-02-29 12:00:00.123456', '2024-02-29 12:00:00.1+02', '23:59:59', 1), ('infinity', '-infinity', 'infinity', '24:00', 2);
UPDATE public.k_date SET k4 = '00:00';
DELETE FROM public.k_date;
INSERT INTO public.k_num VALUES (1.50, 1e10, true, 1), (-0.01, 'NaN', false, 2);
UPDATE public.k_num SET k2 = -0.0;
DELETE FROM public.k_num;
INSERT INTO public.k_text VALUES ('ab', 'é😀', 'n', 'c', 1);
UPDATE public.k_text SET k2 = '';
DELETE FROM public.k_text;
INSERT INTO public.k_net VALUES ('10.0.0.1/8', '08:00:2b:01:02:03', '[1,5)', 1);
UPDATE public.k_net SET k3 = 'empty';
DELETE FROM public.k_net;
INSERT INTO public.k_inc VALUES (1, 1, 'x'), (NULL, 2, NULL);
INSERT INTO public.k_expr VALUES ('A', 1);
INSERT INTO public.k_part VALUES (1, 1), (1, -1);
