-- @config publish.via.partition.root=true
-- @setup
CREATE TABLE public.pt (id int, d date, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE public.pt_20 PARTITION OF public.pt FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
INSERT INTO public.pt VALUES (1,'2020-05-01','a');
-- @stream
INSERT INTO public.pt VALUES (2,'2020-06-01','b');
-- @sync
CREATE TABLE public.pt_21 PARTITION OF public.pt FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
INSERT INTO public.pt VALUES (3,'2021-06-01','c');
-- @sync
UPDATE public.pt SET d='2021-07-01' WHERE id=1;
-- @sync
CREATE TABLE public.pt_22 (id int NOT NULL, d date NOT NULL, v text, PRIMARY KEY (id, d));
INSERT INTO public.pt_22 VALUES (4,'2022-01-01','d');
-- @sync
ALTER TABLE public.pt ATTACH PARTITION public.pt_22 FOR VALUES FROM ('2022-01-01') TO ('2023-01-01');
INSERT INTO public.pt VALUES (5,'2022-02-01','e');
-- @sync
ALTER TABLE public.pt DETACH PARTITION public.pt_20;
INSERT INTO public.pt_20 VALUES (6,'2020-02-01','f');
DELETE FROM public.pt WHERE id=3;
-- @sync
