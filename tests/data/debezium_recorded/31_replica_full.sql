-- @setup
CREATE TABLE public.rf (id int PRIMARY KEY, v text, n numeric(8,2), d date DEFAULT '2020-01-01', a int[]);
ALTER TABLE public.rf REPLICA IDENTITY FULL;
INSERT INTO public.rf VALUES (1,'a',1.5,NULL,'{1,2}'),(2,NULL,NULL,'2021-02-03',NULL);
-- @stream
INSERT INTO public.rf VALUES (3,'c',3.25,'2022-01-01','{}');
UPDATE public.rf SET v='b' WHERE id=1;
UPDATE public.rf SET id=20 WHERE id=2;
UPDATE public.rf SET v=v WHERE id=3;
DELETE FROM public.rf WHERE id=20;
DELETE FROM public.rf;
