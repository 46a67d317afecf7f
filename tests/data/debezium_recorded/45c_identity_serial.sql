-- @setup
CREATE SEQUENCE public.sq START 5;
CREATE TABLE public.ser (id serial PRIMARY KEY, b bigserial, s smallserial, q int DEFAULT nextval('public.sq'), u uuid DEFAULT gen_random_uuid(), t timestamptz DEFAULT now(), d date DEFAULT CURRENT_DATE, j jsonb DEFAULT '{}', x text DEFAULT 'a''b', n numeric(6,2) DEFAULT 1.5, bo bool DEFAULT true, f float8 DEFAULT 2.5, ar int[] DEFAULT '{1}', by bytea DEFAULT '\x01', i interval DEFAULT '1 day', ch char(3) DEFAULT 'z', ti time DEFAULT '01:02:03', ts timestamp DEFAULT '2020-01-02 03:04:05');
INSERT INTO public.ser(id,u,t,d) VALUES (1,'00000000-0000-0000-0000-000000000001','2020-01-01Z','2020-01-01');
-- @stream
-- @expect_error
INSERT INTO public.ser(b) VALUES (NULL);
INSERT INTO public.ser VALUES (3,7,1,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
DELETE FROM public.ser WHERE id=3;
